"""Stage 1, supervised fine-tuning: the model learns to write the annotation that all judges agree on.

arXiv 2511.20994, the SFT stage on the 3:0 subset. Mixing in bare judgments is ours.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from guardtrace_trainer.rows import Labelled
from guardtrace_trainer.stages.encode import Encoder, Example
from guardtrace_trainer.stages.lengths import encode_all
from guardtrace_trainer.stages.settings import SftSettings
from guardtrace_trainer.stages.trainers import Log, sft_trainer
from guardtrace_trainer.stages.training import Work, train


def run_sft(
    settings: SftSettings,
    *,
    base: str,
    data: Sequence[Path],
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
    work = Work("sft", settings, base, data, out, seed, log, corpus, again)
    rows = work.rows(Labelled)

    def examples_of(encoder: Encoder, limit: int) -> list[Example]:
        return examples(rows, encoder, settings, limit=limit, seed=seed)

    return train(
        work,
        rows,
        examples_of,
        lambda network, made, shown, folder: sft_trainer(
            network, made, shown, settings, folder=folder, seed=seed, log=log
        ),
    )


def examples(
    rows: Sequence[tuple[Path, Labelled]], encoder: Encoder, settings: SftSettings, *, limit: int, seed: int
) -> list[Example]:
    """Each row with its annotation, and as many drawn ones again with their bare judgment as ``bare_share`` wants;
    ``rows`` come with the folder of their images.

    Raises:
        StageError: a row can't be encoded, or rows are longer than ``limit`` tokens.
    """

    folder_of = {row.id: folder for folder, row in rows}

    def encode(row: Labelled) -> Example:
        return replace(encoder.prompt(row, folder_of[row.id]), tails=(encoder.reply(row.annotation),))

    whole = encode_all([row for _, row in rows], encode, limit, drop_middle=settings.long_traces == "drop_middle")
    with_analysis = [place for place, (_, row) in enumerate(rows) if row.annotation.analysis]
    bare_already = len(rows) - len(with_analysis)
    wanted = round(len(with_analysis) * settings.bare_share / (1 - settings.bare_share)) - bare_already
    drawn: list[int] = []
    rng = random.Random(f"bare {seed}")
    while len(drawn) < wanted:  # above a half, some come twice
        drawn += rng.sample(with_analysis, min(wanted - len(drawn), len(with_analysis)))
    return whole + [replace(whole[place], tails=(encoder.bare(rows[place][1].annotation),)) for place in drawn]
