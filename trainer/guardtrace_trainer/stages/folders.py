"""Checkpoint folders: finding the one a stage starts from, and writing the one it makes.

Only the weights are new in a result. Tokenizer, processor, chat template and generation settings are the base's own
files, so whatever serves the base serves the result. ``calibration.json`` belongs to the weights that it was measured
on: the base's isn't copied, that of earlier weights goes, and no training depends on it.
"""

from __future__ import annotations

import fnmatch
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import Qwen2_5_VLForConditionalGeneration

from guardtrace_proxy.auditor import no_such_built_in, source_of
from guardtrace_proxy.auditor.calibration import CALIBRATION
from guardtrace_proxy.auditor.checkpoint import OWN_SETTINGS, load_network, own_settings
from guardtrace_trainer.stages.settings import StageError

WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
NOT_COPIED = (*WEIGHTS, "*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.gguf", "*.manifest.json", "*.log.jsonl",
              "*.journal", "*.new", "config.json", "README.md", ".*", OWN_SETTINGS, CALIBRATION)  # fmt: skip
RUNNING = "training"
"""Folder inside a stage's own that holds its checkpoints until it is done."""


def folder_of(base: str) -> Path:
    """The local folder of ``builtin:nano``, a folder or a hub id; the last is fetched where it isn't at hand.

    Raises:
        StageError: there is no such checkpoint.
    """
    if (problem := no_such_built_in(base)) is not None:
        raise StageError(problem)
    source = source_of(base)
    if Path(source).is_dir():
        folder = Path(source)
    else:
        try:
            folder = Path(snapshot_download(source, ignore_patterns=["*.bin", "*.pt", "*.pth", "*.gguf"]))
        except Exception as error:  # the hub's client raises many kinds, and OSError of several
            raise StageError(f"{base} is no folder, and can't be had from the hub: {type(error).__name__}") from error
    if not (folder / "config.json").is_file():
        raise StageError(f"{base}: there is no config.json, so it is no checkpoint")
    return folder


def inputs_of(base: Path) -> list[Path]:
    """What a stage is made from. A base may be calibrated at any time."""
    return [path for path in files_of(base) if path.name != CALIBRATION]


def files_of(folder: Path) -> list[Path]:
    """The files that make a checkpoint."""
    left_out = ("*.manifest.json", "*.log.jsonl", "*.journal", "*.new", "README.md", ".*")
    return sorted(path for path in folder.iterdir() if path.is_file() and not _matches(path, left_out))


def load(folder: Path, dtype: torch.dtype) -> Qwen2_5_VLForConditionalGeneration:
    """The network, on the CPU, all of it frozen and in evaluation mode.

    Raises:
        StageError: it can't be read.
    """
    try:
        network = load_network(str(folder), dtype)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise StageError(f"{folder} can't be loaded as a Qwen2.5-VL checkpoint: {reason}") from error
    network.train(False)
    network.requires_grad_(False)
    return network


def write(
    out: Path,
    network: Qwen2_5_VLForConditionalGeneration,
    base: Path,
    *,
    system_prompt: str,
    dtype: torch.dtype,
    stage: dict[str, Any],
) -> list[Path]:
    """Write the result of a stage into ``out``; returns all its files.

    ``stage`` says how it was made; it is added to what ``guardtrace.json`` says of the stages before.
    """
    for old in out.iterdir() if out.is_dir() else ():
        if old.is_file() and _matches(old, (*WEIGHTS, CALIBRATION)):
            old.unlink()
    network.to(dtype).save_pretrained(out)  # type: ignore[arg-type, unused-ignore]
    for path in base.iterdir():
        if path.is_file() and not _matches(path, NOT_COPIED):
            shutil.copyfile(path, out / path.name)
    own = own_settings(str(base))
    earlier = _stages(base)
    settings = {name: value for name, value in own.items() if value is not None} | {"system_prompt": system_prompt}
    text = json.dumps({**settings, "stages": [*earlier, stage]}, indent=1, ensure_ascii=False)
    (out / OWN_SETTINGS).write_text(text + "\n", "utf-8")
    return files_of(out)


def _stages(base: Path) -> list[Any]:
    path = base / OWN_SETTINGS
    if not path.is_file():
        return []
    found = json.loads(path.read_text("utf-8")).get("stages", [])
    return list(found) if isinstance(found, list) else []


def _matches(path: Path, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatch(path.name, pattern) for pattern in patterns)
