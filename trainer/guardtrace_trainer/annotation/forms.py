"""Forms that experts fill: CSV or JSONL, out and back in.

A form names no judge and shows the three annotations in an order that says nothing of them. Experts fill ``expert`` and
``level`` (0, 0.5 or 1; empty: not judged), and ``comment`` if they like. In a CSV every control character of a model's
text is escaped, and a cell that a spreadsheet would run as a formula begins with ``'``.
"""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

import msgspec

from guardtrace_trainer.annotation.review import Review, in_shown_order, review_of, version
from guardtrace_trainer.rows import UNREADABLE, Row, Vote, write_rows
from guardtrace_trainer.terminal import printable

LEVEL_CELLS = {"0": 0.0, "0.0": 0.0, "0,0": 0.0, "0.5": 0.5, "0,5": 0.5, ".5": 0.5, "1": 1.0, "1.0": 1.0, "1,0": 1.0}
"""Spreadsheets write a level as their language does."""
FORMULA = ("=", "+", "-", "@")
SHOWN = ("image", "question", "thinking", "answer", "annotation_1", "annotation_2", "annotation_3")
COLUMNS = ("id", "version", *SHOWN, "expert", "level", "comment")
NEEDED = ("id", "version", "expert", "level")
DELIMITERS = (",", ";", "\t")


class FormAnnotation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An annotation without its judge."""

    level: float
    analysis: str


class FormRow(Row, frozen=True, kw_only=True):
    """A row of a JSONL form."""

    version: str
    image: str | None = None
    question: str = ""
    thinking: str = ""
    answer: str = ""
    annotations: tuple[FormAnnotation, ...] = ()
    expert: str = ""
    level: float | None = None
    comment: str = ""


class _Filled(NamedTuple):
    """A row that came back. ``level`` is as it was written."""

    place: str
    id: str
    version: str
    expert: str
    level: str
    comment: str


class FormError(Exception):
    """Forms that aren't taken, with all that is wrong with them: file, line and column each."""


def write_form(path: Path, items: Sequence[Vote]) -> int:
    """Write a form, CSV or JSONL by its name; returns how many rows.

    Raises:
        FormError: the name says neither.
    """
    if path.suffix == ".jsonl":
        return write_rows(path, map(_form_row, items))
    if path.suffix != ".csv":
        raise FormError(f"{path}: expected a name that ends in .csv or .jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".new")
    with part.open("w", encoding="utf-8-sig", newline="") as file:  # spreadsheets need the mark
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(map(_cells, items))
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    return len(items)


def renew_form(path: Path, items: Sequence[Vote], waiting: Collection[str]) -> Path | None:
    """See to it that ``path`` is a form with those of ``items`` that are ``waiting``, by their ids.

    One that is stays as it is, since experts may be at work on it. One that lacks some, or shows other texts, is
    written anew; if it can't be read or anything is filled in, it is kept under another name, which is returned.
    """
    problems: list[str] = []
    rows = list(_read(path, problems)) if path.exists() else []
    shown = {(row.id, row.version) for row in rows}
    current = {(item.id, version(item)) for item in items}
    if not problems and {one for one in current if one[0] in waiting} <= shown <= current:
        return None
    kept = None
    if problems or any(row.expert or row.level or row.comment.strip() for row in rows):
        kept = _unused(path)
        path.replace(kept)
    write_form(path, [item for item in items if item.id in waiting])
    return kept


def _unused(path: Path) -> Path:
    """A name beside ``path`` that no file has: ``review.1.csv`` of ``review.csv``."""
    names = (path.with_name(f"{path.stem}.{number}{path.suffix}") for number in count(1))
    return next(name for name in names if not name.exists())


def read_forms(
    paths: Sequence[Path], items: Sequence[Vote], earlier: Sequence[Review], *, expert: str = "", replace: bool = False
) -> list[Review]:
    """The votes of filled forms, all of them or none.

    ``expert`` is whose they are where a row names nobody. An expert's vote that differs from their ``earlier`` one
    needs ``replace``.

    Raises:
        FormError: a cell that can't be used.
    """
    by_id = {item.id: item for item in items}
    known = {review.id: review for review in earlier}
    problems: list[str] = []
    taken: dict[str, tuple[str, Review]] = {}
    for filled in (filled for path in paths for filled in _read(path, problems)):
        if not filled.level:
            continue
        found = _review(filled, by_id, expert)
        if isinstance(found, str):
            problems.append(found)
            continue
        place, other = taken.get(found.id, ("an earlier run", None if replace else known.get(found.id)))
        if other is not None and (other.level, other.version) != (found.level, found.version):
            hint = "; give --replace to change it" if place == "an earlier run" else ""
            said = f"{found.expert} has given {found.item} {other.level:g} in {place}{hint}"
            problems.append(f"{filled.place}, column level: {said}")
        taken[found.id] = filled.place, found
    if problems:
        raise FormError("\n".join(problems))
    return [review for _, review in taken.values()]


def _review(filled: _Filled, items: Mapping[str, Vote], expert: str) -> Review | str:
    """A vote, or what is wrong with it."""
    item = items.get(filled.id)
    if item is None:
        return f"{filled.place}, column id: {printable(filled.id)} is none of the items under review"
    if filled.version != version(item):
        return f"{filled.place}, column version: {filled.id} has other text now; write the form anew"
    level = LEVEL_CELLS.get(filled.level)
    if level is None:
        return f"{filled.place}, column level: expected 0, 0.5 or 1, found {printable(filled.level)!r}"
    who = filled.expert or expert.strip()
    if not who:
        return f"{filled.place}, column expert: a name is missing; fill it in, or give --expert"
    return review_of(item, who, level, filled.comment)


def _read(path: Path, problems: list[str]) -> Iterator[_Filled]:
    try:
        if path.suffix == ".jsonl":
            yield from _read_jsonl(path, problems)
        elif path.suffix == ".csv":
            yield from _read_csv(path, problems)
        else:
            problems.append(f"{path}: expected a name that ends in .csv or .jsonl")
    except OSError as error:
        problems.append(f"{path}: can't be read ({error.strerror})")
    except UnicodeDecodeError:
        problems.append(f'{path}: expected UTF-8; save it as "CSV UTF-8"')


def _read_jsonl(path: Path, problems: list[str]) -> Iterator[_Filled]:
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            row = msgspec.json.decode(line, type=FormRow)
        except UNREADABLE as error:
            problems.append(f"{place}: {error}")
            continue
        level = "" if row.level is None else f"{row.level:g}"
        yield _Filled(place, row.id, row.version, row.expert.strip(), level, row.comment)


def _read_csv(path: Path, problems: list[str]) -> Iterator[_Filled]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        first = file.readline()
        file.seek(0)
        delimiter = max(DELIMITERS, key=first.count)
        csv.field_size_limit(sys.maxsize)  # a trace is longer than the usual limit
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            header = next(reader, [])
            wrong = _header_problem(header)
            if wrong is not None:
                problems.append(f"{path}, line 1: {wrong}")
                return
            line = reader.line_num + 1
            for cells in reader:
                place, line = f"{path}, line {line}", reader.line_num + 1
                if not any(cells):
                    continue
                if len(cells) != len(header):
                    problems.append(f"{place}: expected {len(header)} cells, found {len(cells)}")
                    continue
                yield _filled(place, dict(zip(header, cells, strict=True)))
        except csv.Error as error:
            problems.append(f"{path}, line {reader.line_num}: {error}")


def _header_problem(header: Sequence[str]) -> str | None:
    for column in NEEDED:
        if column not in header:
            return f"column {column} is missing"
    for column in header:
        if column not in COLUMNS:
            return f"column {printable(column)!r} is unknown; notes go into the column comment"
    return f"column {header[0]} comes twice" if len(set(header)) < len(header) else None


def _filled(place: str, row: Mapping[str, str]) -> _Filled:
    item = row["id"]
    if item.startswith("'") and item[1:].startswith(FORMULA):
        item = item[1:]
    version, expert, level = (row[name].strip() for name in ("version", "expert", "level"))
    return _Filled(place, item, version, expert, level, row.get("comment", ""))


def _form_row(item: Vote) -> FormRow:
    return FormRow(
        id=item.id,
        version=version(item),
        image=item.image,
        question=item.question,
        thinking=item.thinking,
        answer=item.answer,
        annotations=tuple(FormAnnotation(one.level, one.analysis) for one in in_shown_order(item)),
    )


def _cells(item: Vote) -> list[str]:
    annotations = [f"[{one.level:g}] {one.analysis}" for one in in_shown_order(item)]
    texts = [item.image or "", item.question, item.thinking, item.answer, *annotations]
    return [*map(_cell, (item.id, version(item), *texts)), "", "", ""]


def _cell(text: str) -> str:
    shown = printable(text)
    return "'" + shown if shown.lstrip().startswith(FORMULA) else shown
