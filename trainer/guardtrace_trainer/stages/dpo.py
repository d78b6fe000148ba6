"""Stages 2 and 3, preference optimisation: chosen above rejected, against the model that the stage starts from.

arXiv 2511.20994: DPO on the 2:1 subset against the frozen SFT model, with β1; OGDPO on mined and expert pairs against
the frozen DPO model, with β2. The loss is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from guardtrace_trainer.rows import Pair
from guardtrace_trainer.stages import folders
from guardtrace_trainer.stages.batches import Images
from guardtrace_trainer.stages.encode import Encoder, Example
from guardtrace_trainer.stages.lengths import encode_all
from guardtrace_trainer.stages.settings import DpoSettings
from guardtrace_trainer.stages.trainers import Dpo, Log, dpo_trainer
from guardtrace_trainer.stages.training import Work, train


def run_dpo(
    settings: DpoSettings,
    *,
    base: str,
    data: Sequence[Path],
    out: Path,
    seed: int,
    log: Log,
    corpus: Path | None = None,
    again: bool = False,
) -> Path:
    """Stage 2: train the SFT model ``base`` on ``data`` (rows of :class:`Pair`); returns ``out``, a checkpoint folder.

    Raises:
        RowError, StageError, StepError: with what to do.
    """
    return _run(Work("dpo", settings, base, data, out, seed, log, corpus, again), settings)


def run_ogdpo(
    settings: DpoSettings,
    *,
    base: str,
    data: Sequence[Path],
    out: Path,
    seed: int,
    log: Log,
    corpus: Path | None = None,
    again: bool = False,
) -> Path:
    """Stage 3: as :func:`run_dpo`, from the DPO model, on what was mined and what experts decided."""
    return _run(Work("ogdpo", settings, base, data, out, seed, log, corpus, again), settings)


def _run(work: Work, settings: DpoSettings) -> Path:
    rows = work.rows(Pair)

    def examples_of(encoder: Encoder, limit: int) -> list[Example]:
        return examples(rows, encoder, settings, limit=limit)

    def trainer_of(
        network: Qwen2_5_VLForConditionalGeneration, made: list[Example], images: Images, folder: Path
    ) -> Dpo:
        reference = None if settings.lora is not None else folders.load(folders.folder_of(work.base), torch.float32)
        return dpo_trainer(network, reference, made, images, settings, folder=folder, seed=work.seed, log=work.log)

    return train(work, rows, examples_of, trainer_of)


def examples(
    rows: Sequence[tuple[Path, Pair]], encoder: Encoder, settings: DpoSettings, *, limit: int
) -> list[Example]:
    """Each pair with two tails, chosen and rejected; ``rows`` come with the folder of their images.

    Raises:
        StageError: a row can't be encoded, or rows are longer than ``limit`` tokens.
    """
    folder_of = {row.id: folder for folder, row in rows}

    def encode(row: Pair) -> Example:
        both = row.chosen.analysis and row.rejected.analysis
        # with an analysis on one side only, its form would be preferred and not its level
        tail = encoder.reply if both else encoder.bare
        tails = (tail(row.chosen), tail(row.rejected))
        return replace(encoder.prompt(row, folder_of[row.id]), tails=tails)

    return encode_all([row for _, row in rows], encode, limit, drop_middle=settings.long_traces == "drop_middle")
