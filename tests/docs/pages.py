"""The pages that are checked, and what is in them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), ROOT / "examples" / "README.md", *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(
    r"^(?:<!-- not run: (?P<reason>.+?) -->\n)?```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


NAMED_TEST = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")
"""A test as a page names it: its file, and its name in it or an empty one."""


class Block(NamedTuple):
    """A fenced block. ``reason`` says why its commands aren't run."""

    page: Path
    line: int
    kind: str
    text: str
    reason: str | None

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(*kinds: str) -> Iterator[Block]:
    """All fenced blocks of these kinds."""
    for page in PAGES:
        text = page.read_text("utf-8")
        for found in FENCE.finditer(text):
            if found["kind"] in kinds:
                line = text.count("\n", 0, found.start()) + 1
                yield Block(page, line, found["kind"], found["text"], found["reason"])


def rows_of(page: str) -> list[list[str]]:
    """The cells of all rows of a page's tables, less their heads."""
    rows = [line.strip("|").split("|") for line in page.splitlines() if line.startswith("| ")]
    heads = re.findall(r"^(\|.*)\n\|-", page, re.MULTILINE)
    return [[cell.strip() for cell in row] for row in rows if f"|{'|'.join(row)}|" not in heads]


def named_in(path: str) -> set[str]:
    """Names of the tests that a file has."""
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def commands(text: str) -> Iterator[str]:
    """The command lines of a block, continued lines joined, comments dropped."""
    for line in text.replace("\\\n", " ").splitlines():
        command = line.strip()
        if command and not command.startswith("#"):
            yield command


def leaves_of(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names of all settings with their defaults; ``NAME`` stands for a key of a mapping."""
    for name, field in model.model_fields.items():
        inner = field.annotation
        values = get_args(inner)[1:]
        models = [value for value in get_args(inner) if isinstance(value, type) and issubclass(value, BaseModel)]
        if type(None) in values and models:
            yield f"{prefix}{name}", field.default
            inner = models[0]
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from leaves_of(inner, f"{prefix}{name}.")
        elif values and isinstance(values[0], type) and issubclass(values[0], BaseModel):
            yield from leaves_of(values[0], f"{prefix}{name}.NAME.")
        else:
            yield f"{prefix}{name}", field.default
