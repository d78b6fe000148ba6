"""What a checkpoint's own files may not bring in: code, or weights from elsewhere, which its hash wouldn't cover.

transformers (5.24) would ask on the terminal whether to run the code that ``auto_map`` names, follow an adapter to its
base and an index out of the folder. Pickles aren't read whatever the folder says: weights are safetensors alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

CONFIGS = ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")
ADAPTER = "adapter_config.json"
INDEX = "model.safetensors.index.json"
CODE, ELSEWHERE = ("auto_map", "custom_pipelines"), ("transformers_weights", "audio_tokenizer")


def refuse_foreign(source: str) -> None:
    """Raise ValueError where a checkpoint names code, an adapter's base, or files that aren't its own."""
    for name in CONFIGS:
        keys = set(_keys(_content(source, name)))
        if code := keys.intersection(CODE):
            raise ValueError(
                f"{name} names code of its own ({code.pop()}), which is never run: use a checkpoint without"
            )
        if elsewhere := keys.intersection(ELSEWHERE):
            raise ValueError(f"{name} takes a part of the model from elsewhere ({elsewhere.pop()})")
    if file_beside(source, ADAPTER) is not None:
        raise ValueError(f"it is an adapter ({ADAPTER}): merge it into its base and give the whole")
    index = _content(source, INDEX)
    files = index.get("weight_map", {}) if isinstance(index, dict) else None
    if not isinstance(files, dict) or not all(_is_own(name) for name in files.values()):
        raise ValueError(f"{INDEX} names files that aren't safetensors in the checkpoint's own folder")


def file_beside(source: str, name: str) -> bytes | None:
    """A file of the checkpoint's own; None where it has none of that name."""
    folder = Path(source)
    if folder.is_dir():
        path = folder / name
        return path.read_bytes() if path.is_file() else None
    try:
        return Path(hf_hub_download(source, name)).read_bytes()
    except (EntryNotFoundError, LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError):
        return None  # most checkpoints have none; whether the hub can be reached, loading the model says


def _content(source: str, name: str) -> Any:
    """An empty object where there is no such file."""
    content = file_beside(source, name)
    try:
        return {} if content is None else json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} isn't JSON") from error


def _keys(value: Any) -> Iterator[str]:
    """Those of all objects in it, however deep."""
    values = value if isinstance(value, list) else []
    if isinstance(value, dict):
        yield from value
        values = list(value.values())
    for inner in values:
        yield from _keys(inner)


def _is_own(name: object) -> bool:
    return isinstance(name, str) and name.endswith(".safetensors") and not set(name) & set("/\\\0")
