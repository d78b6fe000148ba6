"""What every training stage does: take up where it was left, train over TRL, write a checkpoint that can be served."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import torch
from peft import PeftModel
from transformers import Qwen2_5_VLForConditionalGeneration

from guardtrace_proxy.auditor.calibration import CALIBRATION
from guardtrace_proxy.auditor.checkpoint import own_settings
from guardtrace_proxy.auditor.context import DEFAULT_CONTEXT
from guardtrace_trainer.children import die_with_parent
from guardtrace_trainer.rows import Trace, place_of, rows_of
from guardtrace_trainer.stages import folders
from guardtrace_trainer.stages.batches import Images
from guardtrace_trainer.stages.encode import Encoder, Example
from guardtrace_trainer.stages.lengths import TooLong
from guardtrace_trainer.stages.processes import alone, main_process_first, sharded, side_by_side
from guardtrace_trainer.stages.settings import StageError, Tuning
from guardtrace_trainer.stages.trainers import Log, last_checkpoint, on_gpu
from guardtrace_trainer.steps import Step, StepError, file_hash

AnyTrace = TypeVar("AnyTrace", bound=Trace)
FEATURE_BYTES = 2 << 30
"""Of all images' features together, up to which they are computed once and kept."""
IMAGES_AT_ONCE = 32


@dataclass(frozen=True)
class Work:
    """One stage to be run: ``name``, the checkpoint it starts from, its rows' files, the folder it fills.

    ``corpus`` is the folder that the rows' images are relative to; None: that of their file.
    """

    name: str
    settings: Tuning
    base: str
    data: Sequence[Path]
    out: Path
    seed: int
    log: Log
    corpus: Path | None = None
    again: bool = False

    def images_of(self, data: Path) -> Path:
        """The folder that the images of a file's rows are relative to."""
        return self.corpus or data.parent

    def rows(self, type: type[AnyTrace]) -> list[tuple[Path, AnyTrace]]:
        """All rows, each with the folder of its images.

        Raises:
            RowError: a file doesn't fit, or a row stands in two.
            StageError: a row's image leads out of its folder.
        """
        found: list[tuple[Path, AnyTrace]] = []
        for path, number, row in rows_of(self.data, type):
            if row.image is not None and (Path(row.image).is_absolute() or ".." in Path(row.image).parts):
                place = f"{path}, line {number}, row {row.id}"
                raise StageError(f"{place}, field image: {row.image} leads out of the corpus's folder")
            found.append((self.images_of(path), row))
        return found

    def place(self, row: str) -> str:
        """Where a row stands, by its id: file and line."""
        return place_of(row, *self.data)


ExamplesOf = Callable[[Encoder, int], list[Example]]
TrainerOf = Callable[[Qwen2_5_VLForConditionalGeneration, list[Example], Images, Path], Any]


def train(work: Work, rows: Sequence[tuple[Path, Trace]], examples_of: ExamplesOf, trainer_of: TrainerOf) -> Path:
    """Run a stage; returns ``work.out``, a checkpoint folder. One that is done already is passed over, one that was
    interrupted goes on from its last checkpoint.

    Args:
        work: what is to be done.
        rows: all rows, each with the folder of its images.
        examples_of: given an encoder and the most tokens that an example may have.
        trainer_of: given the network, the examples, their images and a folder for checkpoints.

    Raises:
        StageError: it can't be run so.
        StepError: the folder holds another run of this stage.
    """
    if not rows:
        raise StageError(f"{', '.join(map(str, work.data))}: there are no rows, so there is nothing to learn")
    base = folders.folder_of(work.base)
    _check_apart(work, base)
    if sharded() and not work.settings.freeze_vision:
        # a process whose rows have no images would add fewer gradients to what all of them sum up
        raise StageError("freeze_vision: FSDP can't train the vision tower; leave it frozen, or launch without FSDP")
    with main_process_first() as is_first:
        step = _step(work, base, rows, again=work.again and is_first)  # the others find what the first one began
    running = work.out / folders.RUNNING
    if step.done:
        work.log(f"{work.name}: {work.out} is done already")
        return work.out
    if work.settings.processes > 1 and alone() and not on_gpu():
        side_by_side(work.settings.processes, _as_json(work), running, work.log)
        shutil.rmtree(running, ignore_errors=True)
        return work.out
    if not alone():
        die_with_parent()  # a launcher's own death doesn't end its workers
    threads = torch.get_num_threads()
    if not on_gpu():
        torch.set_num_threads(work.settings.threads)
    try:
        _train(work, step, base, running, examples_of, trainer_of)
    finally:
        torch.set_num_threads(threads)
    return work.out


def _train(work: Work, step: Step, base: Path, running: Path, examples_of: ExamplesOf, trainer_of: TrainerOf) -> None:
    settings = work.settings
    encoder = Encoder(base, settings.system_prompt)
    try:
        examples = examples_of(encoder, length_limit(settings, base))
    except TooLong as error:
        raise error.at(work.place) from None
    adapters_on_bf16 = settings.lora is not None and on_gpu()
    network = folders.load(base, torch.bfloat16 if adapters_on_bf16 else torch.float32)
    images = Images(encoder, features_of(network, encoder, examples) if settings.freeze_vision else {})
    trainer = trainer_of(network, examples, images, running)
    checkpoint = last_checkpoint(running)
    if checkpoint is not None:
        work.log(f"{work.name}: goes on from {checkpoint.name}")
    lengths = [example.length for example in examples]
    work.log(f"{work.name}: {len(examples)} examples of {min(lengths)} to {max(lengths)} tokens")
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    trainer.save_model(str(running / "result"))
    trainer.accelerator.wait_for_everyone()
    if trainer.accelerator.is_main_process:
        _finish(work, step, base, running, encoder, examples, trainer)
    trainer.accelerator.wait_for_everyone()
    if trainer.accelerator.is_main_process:
        shutil.rmtree(running)


def _finish(
    work: Work, step: Step, base: Path, running: Path, encoder: Encoder, examples: Sequence[Example], trainer: Any
) -> None:
    settings, result = work.settings, running / "result"
    if settings.lora is None:
        network = folders.load(result, torch.float32)
    else:
        adapted = PeftModel.from_pretrained(folders.load(base, torch.float32), str(result))
        network = adapted.merge_and_unload()
    counts = {
        "examples": len(examples),
        "tokens": sum(example.length for example in examples),
        "steps": trainer.state.global_step,
        "losses": [round(entry["loss"], 5) for entry in trainer.state.log_history if "loss" in entry],
    }
    files = folders.write(
        work.out,
        network,
        base,
        system_prompt=encoder.system_prompt,
        dtype=getattr(torch, settings.save_dtype),
        stage={"stage": work.name, "seed": work.seed, "examples": len(examples), "steps": trainer.state.global_step},
    )
    (work.out / f"{work.name}.log.jsonl").write_bytes(
        b"".join(msgspec.json.encode(entry) + b"\n" for entry in trainer.state.log_history)
    )
    step.made(files, **counts)
    work.log(f"{work.name}: wrote {work.out}")


def _check_apart(work: Work, base: Path) -> None:
    """A stage writes over the weights in its folder.

    Raises:
        StageError: those are the ones that it starts from.
    """
    out, start = work.out.resolve(), base.resolve()
    if out.is_relative_to(start) or start.is_relative_to(out):
        raise StageError(f"--out {work.out} is --base {work.base}, or one lies in the other: take a folder of its own")


def length_limit(settings: Tuning, base: Path) -> int:
    """Tokens that an example may have.

    Raises:
        StageError: the settings allow more than the checkpoint takes.
    """
    own = own_settings(str(base)).get("max_context")
    if settings.max_length is None:
        return own or DEFAULT_CONTEXT
    if own is not None and settings.max_length > own:
        raise StageError(f"max_length: {settings.max_length} tokens are more than the checkpoint's context, {own}")
    return settings.max_length


@torch.inference_mode()
def features_of(
    network: Qwen2_5_VLForConditionalGeneration, encoder: Encoder, examples: Sequence[Example]
) -> dict[Path, torch.Tensor]:
    """What a frozen vision tower makes of each image, [tokens, hidden]; empty on a GPU, or if that is too much."""
    merge = encoder.processor.image_processor.merge_size
    shown = {example.image: example.grid for example in examples if example.image and example.grid}
    tokens = sum(height * width // merge**2 for _, height, width in shown.values())
    if on_gpu() or tokens * network.config.get_text_config().hidden_size * 4 > FEATURE_BYTES:
        return {}
    found: dict[Path, torch.Tensor] = {}
    paths = list(shown)
    for start in range(0, len(paths), IMAGES_AT_ONCE):
        some = paths[start : start + IMAGES_AT_ONCE]
        patches = torch.cat([encoder.patches(path) for path in some])
        output = network.model.get_image_features(
            patches, torch.tensor([shown[path] for path in some]), return_dict=True
        )
        found.update(zip(some, (part.clone() for part in output.pooler_output), strict=True))
    return found


def _as_json(work: Work) -> dict[str, Any]:
    """What another process needs to run the same; it goes on with the step that was begun here."""
    return {
        "stage": work.name,
        "settings": work.settings.model_dump(mode="json"),
        "base": work.base,
        "data": [str(path) for path in work.data],
        "out": str(work.out),
        "seed": work.seed,
        "corpus": None if work.corpus is None else str(work.corpus),
    }


def _step(work: Work, base: Path, rows: Sequence[tuple[Path, Trace]], *, again: bool) -> Step:
    changes_nothing = {"report_to", "logging_steps", "workers", "save_steps"}
    return Step(
        work.out,
        work.name,
        inputs=[*work.data, *folders.inputs_of(base)],
        settings={
            **work.settings.model_dump(mode="json", exclude=changes_nothing),
            "seed": work.seed,
            "images": _images_hash(work, rows),
        },
        again=again,
        unheeded=[CALIBRATION],
        clear=lambda: _remove(work.out / folders.RUNNING),
    )


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _images_hash(work: Work, rows: Sequence[tuple[Path, Trace]]) -> str:
    """One hash of all images."""
    shown = {folder / row.image: row.id for folder, row in rows if row.image is not None}
    digest = hashlib.sha256()
    for path, row in sorted(shown.items()):
        try:
            digest.update(file_hash(path).encode())
        except StepError as error:
            raise StageError(
                f"{work.place(row)}, field image: {path} can't be read. Images lie in the folder of their rows' file; "
                "else name it: corpus"
            ) from error
    return digest.hexdigest()
