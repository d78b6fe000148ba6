"""The rows of a corpus: what stands in each JSONL file, from source queries to pairs.

A corpus is a folder. Its files follow one another, each made by one step from those before it::

    queries.jsonl   requests.jsonl + images/   traces.jsonl      votes.jsonl
    Query     ──►   Request              ──►   Trace       ──►   Vote  ──►   sft.jsonl, pairs.jsonl, experts.jsonl

Unknown fields are errors. Paths of images are relative to the corpus's folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from guardtrace_proxy.policy.levels import Level

Split = Literal["train", "test"]
Category = Literal[
    "crime and illegal activities",
    "cybersecurity",
    "data privacy",
    "ethics and morality",
    "physical and mental health",
    "hate speech",
    "extremism",
    "misleading advice",
    "other",
]
"""The nine risk categories of GuardTrace-VL (arXiv 2511.20994)."""
Variant = Literal["text", "irrelevant", "aligned", "figstep", "csdj", "hades"]
Agreement = Literal["3:0", "2:1", "1:1:1"]
Origin = Literal["jury", "mined", "expert", "prefix"]
LEVELS = (0.0, 0.5, 1.0)
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises at bytes that are no row."""
AnyRow = TypeVar("AnyRow", bound="Row")


class RowError(Exception):
    """A row that doesn't fit; the message names file, line and field."""


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A line of a JSONL file. ``id`` is unique in its file."""

    id: str


class Query(Row, frozen=True, kw_only=True):
    """A source query. ``split`` is decided here, before variants are made, so that no query is on both sides."""

    text: str
    source: str
    split: Split
    category: Category | None = None


class Request(Row, frozen=True, kw_only=True):
    """What a thinking model is asked: ``question`` as it is sent, with an image or without."""

    query_id: str
    query: str
    source: str
    split: Split
    variant: Variant
    question: str
    image: str | None = None
    category: Category | None = None


class Trace(Request, frozen=True, kw_only=True):
    """A request and what a thinking model made of it (QTA: question, thinking, answer)."""

    request_id: str
    model: str
    thinking: str
    answer: str
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Annotation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One analysis with its judgment, and who gave it. An empty analysis stands for a bare judgment."""

    judge: str
    level: float
    analysis: str

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ValueError("a level is 0, 0.5 or 1")

    @property
    def text(self) -> str:
        """The reply that a trained auditor is to write."""
        return f"“Analysis”: {self.analysis}\n“Judgment”: {Level(self.level).label}"

    @property
    def bare(self) -> str:
        """The same judgment without its analysis."""
        return f"“Judgment”: {Level(self.level).label}"


class Vote(Trace, frozen=True, kw_only=True):
    """A trace and what the whole jury said of it, one annotation a judge, in the jury's order."""

    votes: tuple[Annotation, ...]


class Labelled(Trace, frozen=True, kw_only=True):
    """A row of SFT: all judges gave its level; ``annotation`` is one of theirs."""

    agreement: Agreement
    annotation: Annotation
    origin: Origin = "jury"


class Pair(Trace, frozen=True, kw_only=True):
    """A row of DPO and OGDPO. ``chosen`` and ``rejected`` differ in their level."""

    agreement: Agreement
    chosen: Annotation
    rejected: Annotation
    origin: Origin = "jury"

    def __post_init__(self) -> None:
        if self.chosen.level == self.rejected.level:
            raise ValueError("chosen and rejected have the same level")


def read_rows(path: Path, type: type[AnyRow]) -> list[AnyRow]:
    """All rows of a file; blank lines are passed over.

    Raises:
        RowError: the file can't be read, a line doesn't fit, or an id comes twice.
    """
    return [row for _, row in numbered_rows(path, type)]


def numbered_rows(path: Path, type: type[AnyRow]) -> Iterator[tuple[int, AnyRow]]:
    """As :func:`read_rows`, each with the number of its line, for those who check more than a row by itself shows."""
    decoder = msgspec.json.Decoder(type)
    seen: set[str] = set()
    for number, line in _lines(path):
        try:
            row = decoder.decode(line)
        except UNREADABLE as error:
            raise RowError(f"{path}, line {number}: {_field(str(error))}") from error
        if row.id in seen:
            raise RowError(f"{path}, line {number}, field id: {row.id!r} stands in an earlier line already")
        seen.add(row.id)
        yield number, row


def rows_of(paths: Sequence[Path], type: type[AnyRow]) -> Iterator[tuple[Path, int, AnyRow]]:
    """The rows of several files, each with its file and the number of its line.

    Raises:
        RowError: as :func:`read_rows`, or a row stands in two of them.
    """
    seen: set[str] = set()
    for path in paths:
        for number, row in numbered_rows(path, type):
            if row.id in seen:
                names = ", ".join(map(str, paths))
                raise RowError(f"{path}, line {number}, row {row.id} stands in two of {names}: take one out")
            seen.add(row.id)
            yield path, number, row


def write_rows(path: Path, rows: Iterable[msgspec.Struct]) -> int:
    """Write a whole file in one move, so that nobody sees half of it; returns how many rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".new")
    count = 0
    with part.open("wb") as file:
        for row in rows:
            file.write(msgspec.json.encode(row) + b"\n")
            count += 1
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    return count


def place_of(id: str, *paths: Path) -> str:
    """``FILE, line N, row ID``, for messages about a row that was read from one of ``paths``.

    Raises:
        RowError: one of them can't be read any more.
    """
    for path in paths:
        for number, line in _lines(path):
            if msgspec.json.decode(line, type=_Named).id == id:
                return f"{path}, line {number}, row {id}"
    return f"row {id}"


class _Named(msgspec.Struct):
    """Any row, of which only the id counts."""

    id: str


def row_as(row: Row, type: type[AnyRow], **fields: object) -> AnyRow:
    """The fields that ``row`` and ``type`` share, with ``fields`` put in or replaced."""
    shared = {name: getattr(row, name) for name in type.__struct_fields__ if hasattr(row, name)}
    return type(**{**shared, **fields})


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RowError(f"{path}: can't be read ({error.strerror}); which step should have made it?") from error
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.strip():
            yield number, line


def _field(message: str) -> str:
    """msgspec's message with the field in front: ``Expected `str`, got `int` - at `$.question```."""
    what, at, path = message.partition(" - at `$.")
    return f"field {path.rstrip('`')}: {what}" if at else message
