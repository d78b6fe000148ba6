"""``--again-from`` of a run: all that is to be made again is marked once, in its manifest, and a step that finds the
mark begins anew. So whatever runs the folder after a crash goes on, and does nothing twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import msgspec

from guardtrace_trainer.recipe import Recipe
from guardtrace_trainer.rows import UNREADABLE
from guardtrace_trainer.steps import mark_due

Log = Callable[[str], None]
Part = Literal["corpus", "base", "sft", "dpo", "mine", "ogdpo", "evaluation"]
PARTS: tuple[Part, ...] = get_args(Part)
"""In their order. A part that is begun anew is followed by all after it."""
FOLDERS: dict[Part, tuple[str, ...]] = {"mine": ("mined",), "evaluation": ("data", "evaluation")}
"""Of parts whose steps aren't in a folder of the part's name."""
FILE = "again.json"


class Begun(msgspec.Struct, frozen=True):
    """The ``--again-from`` that a run folder is at, until a run of it ends. ``recipe`` is a digest."""

    part: Part
    recipe: str


def begin_again(recipe: Recipe, part: Part, log: Log) -> None:
    """Mark what stands of a part and those after it, unless the same command did so and was interrupted."""
    path = recipe.folder / FILE
    settings = recipe.model_dump_json(exclude={"folder"})  # which may be spelled in several ways
    begun = Begun(part, hashlib.sha256(settings.encode()).hexdigest())
    if _read(path) == begun:
        log(f"again from {part}: goes on where it was interrupted; to begin it anew, remove {path}")
        return
    for one in PARTS[PARTS.index(part) :]:
        for folder in FOLDERS.get(one, (one,)):
            for manifest in sorted((recipe.folder / folder).rglob("*.manifest.json")):
                mark_due(manifest)
    recipe.folder.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.encode(begun) + b"\n")


def end_again(recipe: Recipe) -> None:
    """A run is done: the next ``--again-from`` is another one."""
    (recipe.folder / FILE).unlink(missing_ok=True)


def _read(path: Path) -> Begun | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Begun)
    except (FileNotFoundError, *UNREADABLE):
        return None
