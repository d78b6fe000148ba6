"""Stage 1, supervised fine-tuning: the model learns to write the annotation that all judges agree on.

arXiv 2511.20994, the SFT stage on the 3:0 subset. Mixing in bare judgments is ours.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from guardtrace_trainer.rows import Labelled, read_rows
from guardtrace_trainer.stages.encode import Encoder, Example
from guardtrace_trainer.stages.lengths import encode_all
from guardtrace_trainer.stages.settings import SftSettings
from guardtrace_trainer.stages.trainers import Log, sft_trainer
from guardtrace_trainer.stages.training import Work, train


def run_sft(
    settings: SftSettings,
    *,
    base: str,
    data: Path,
    out: Path,
    seed: int,
    log: Log,
    corpus: Path | None = None,
    again: bool = False,
) -> Path:
    """Train ``base`` (``builtin:nano``, a folder or a hub id) on ``data`` (rows of :class:`Labelled`); returns ``out``,
    a checkpoint folder.

    Raises:
        RowError, StageError, StepError: with what to do.
    """
    rows = read_rows(data, Labelled)
    work = Work("sft", settings, base, [data], out, seed, log, corpus, again)
    images = work.images_of(data)

    def examples_of(encoder: Encoder, limit: int) -> list[Example]:
        return examples(rows, encoder, images, settings, limit=limit, seed=seed)

    return train(
        work,
        [(images, row) for row in rows],
        examples_of,
        lambda network, made, shown, folder: sft_trainer(
            network, made, shown, settings, folder=folder, seed=seed, log=log
        ),
    )


def examples(
    rows: Sequence[Labelled], encoder: Encoder, images: Path, settings: SftSettings, *, limit: int, seed: int
) -> list[Example]:
    """Each row with its annotation, and as many drawn ones again with their bare judgment as ``bare_share`` wants.

    Raises:
        StageError: a row can't be encoded, or rows are longer than ``limit`` tokens.
    """

    def encode(row: Labelled) -> Example:
        return replace(encoder.prompt(row, images), tails=(encoder.reply(row.annotation),))

    whole = encode_all(rows, encode, limit, drop_middle=settings.long_traces == "drop_middle")
    wanted = round(len(rows) * settings.bare_share / (1 - settings.bare_share))
    drawn: list[int] = []
    rng = random.Random(f"bare {seed}")
    while len(drawn) < wanted:  # above a half, some come twice
        drawn += rng.sample(range(len(rows)), min(wanted - len(drawn), len(rows)))
    return whole + [replace(whole[place], tails=(encoder.bare(rows[place].annotation),)) for place in drawn]
