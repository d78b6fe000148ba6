"""Puts a run's last checkpoint in the place of the one that ships as ``builtin:nano``."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec

from guardtrace_proxy.auditor import BUILT_IN, source_of
from guardtrace_trainer.rows import UNREADABLE
from guardtrace_trainer.run_report import REPORT
from guardtrace_trainer.stages.folders import files_of
from guardtrace_trainer.steps import Manifest, StepError, file_hash

SHIPPED = Path(source_of(BUILT_IN))
MOST_BYTES = 20_000_000
"""Of all its files: what the package's wheel can carry."""
WEIGHTS = "model.safetensors"


def ship(run: Path, target: Path = SHIPPED) -> list[str]:
    """Copy the checkpoint of the last stage of ``run`` over the one in ``target``; returns the names of the files that
    changed or went.

    Raises:
        StepError: the run isn't finished, or the checkpoint is too large; ``target`` is as it was.
    """
    stage = run / ("ogdpo" if (run / "ogdpo").is_dir() else "dpo")
    _check_finished(run, stage)
    files = files_of(stage)
    size = sum(path.stat().st_size for path in files)
    if size > MOST_BYTES:
        raise StepError(
            f"{stage}: {size / 1e6:.1f} MB, and at most {MOST_BYTES / 1e6:.0f} MB ship; "
            "set save_dtype: bfloat16 in the last stage, or train a smaller one"
        )
    kept = {path.name for path in files}
    gone = [path for path in files_of(target) if path.name not in kept]
    changed = [path for path in files if not _is_same(path, target / path.name)]
    for path in gone:  # such as a calibration.json, which belongs to other weights
        path.unlink()
    for path in changed:
        shutil.copyfile(path, target / path.name)
    return sorted(path.name for path in (*gone, *changed))


def _check_finished(run: Path, stage: Path) -> None:
    """The stage is done, its files stand, and everything was evaluated with these very weights."""
    again = f"finish it with `guardtrace-train run` before {stage.name} is shipped"
    made = _manifest(stage / f"{stage.name}.manifest.json")
    if made is None or made.seconds is None:
        raise StepError(f"{stage}: this stage isn't done; {again}")
    changed = [name for name, digest in made.outputs.items() if not _stands(stage / name, digest)]
    if changed:
        raise StepError(f"{stage}: {', '.join(changed)} isn't as the stage left it; {again}")
    weights = file_hash(stage / WEIGHTS)
    sets = [path.parent for path in sorted(run.glob("evaluation/*/base.evaluate.manifest.json"))]
    found = [_manifest(folder / f"{stage.name}.evaluate.manifest.json") for folder in sets]
    evaluated = [each is not None and each.seconds is not None and weights in each.inputs.values() for each in found]
    if not evaluated or not all(evaluated):
        raise StepError(f"{run}: {stage.name} isn't evaluated as it stands; {again}")
    if not (run / REPORT).is_file():
        raise StepError(f"{run}: there is no {REPORT}, which a run ends with; {again}")


def _manifest(path: Path) -> Manifest | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Manifest)
    except FileNotFoundError:
        return None
    except UNREADABLE as error:
        raise StepError(f"{path} is no manifest ({error}); run that step again") from error


def _stands(path: Path, digest: str) -> bool:
    return path.is_file() and file_hash(path) == digest


def _is_same(one: Path, other: Path) -> bool:
    return other.is_file() and file_hash(one) == file_hash(other)
