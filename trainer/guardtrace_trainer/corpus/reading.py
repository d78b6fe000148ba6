"""Readers of source queries: JSONL, CSV, and S-Eval as it is published.

S-Eval (https://github.com/IS2Lab/S-Eval, arXiv 2405.14191) comes as ``.jsonl.zip`` files; once unpacked, each line has
``traceid``, ``risk_type``, ``prompt`` and ``ext``. ``risk_type`` is one of eight risk dimensions, written with
underscores (``Crimes_and_Illegal_Activities``).
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

from guardtrace_trainer.corpus.similar import normalised
from guardtrace_trainer.rows import Category, RowError

Format = Literal["auto", "jsonl", "csv", "s-eval"]
CATEGORIES: tuple[Category, ...] = get_args(Category)
TEXT_FIELDS = ("text", "query", "question", "prompt", "instruction", "goal", "behavior")
"""What the text is called in most published sets; compared without regard to case."""
CATEGORY_FIELDS = ("category", "risk_category")
SUFFIXES: dict[str, Literal["jsonl", "csv"]] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}
S_EVAL_FIELDS = {"prompt", "risk_type"}
S_EVAL_RISKS: dict[str, Category] = {
    "crimes and illegal activities": "crime and illegal activities",
    "cybersecurity": "cybersecurity",
    "data privacy": "data privacy",
    "ethics and morality": "ethics and morality",
    "physical and mental health": "physical and mental health",
    "hate speech": "hate speech",
    "extremism": "extremism",
    "inappropriate suggestions": "misleading advice",
}
"""S-Eval's risk dimensions (its README) in the nine categories. Nothing of it is "other"."""


@dataclass(frozen=True)
class Layout:
    """Where a file's texts and categories stand. None: found out from the file.

    ``renamed`` maps a file's own names of categories to ours.
    """

    format: Format = "auto"
    text_field: str | None = None
    category_field: str | None = None
    renamed: Mapping[str, Category] = field(default_factory=dict)
    categories: bool = True


@dataclass(frozen=True)
class SourceQuery:
    """A query as it stands in a file, in line ``line`` (of a CSV record its first line)."""

    text: str
    category: Category | None
    line: int


def read_queries(path: Path, layout: Layout) -> list[SourceQuery]:
    """All queries of a file, in its order.

    Raises:
        RowError: the file or a line of it doesn't fit; the message names file, line and field.
    """
    content = _content(path)
    kind = layout.format if layout.format in ("jsonl", "csv") else SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise RowError(
            f"{path}: JSONL or CSV? Expected the suffix {', '.join(SUFFIXES)}, or --format, in a recipe format"
        )
    records = list(_csv(path, content) if kind == "csv" else _jsonl(path, content))
    if not records:
        raise RowError(f"{path}: holds no query")
    fields = list(records[0][1])
    s_eval = layout.format == "s-eval" or (
        layout.format == "auto" and layout.text_field is layout.category_field is None and set(fields) >= S_EVAL_FIELDS
    )
    if s_eval:
        names = ("prompt", "risk_type" if layout.categories else None)
        risks = {**S_EVAL_RISKS, **layout.renamed}
    else:
        names = (_text_field(path, fields, layout), _category_field(path, fields, layout))
        risks = {**{name: name for name in CATEGORIES}, **layout.renamed}
    known = {plain_name(name): category for name, category in risks.items()}
    return [_query(path, line, record, names, known) for line, record in records]


def plain_name(name: str) -> str:
    """A category's name without regard to case, underscores, ``&`` and an abbreviation behind it: ``(CI)``."""
    spelled = re.sub(r"\(\w+\)\s*$", "", name).replace("&", " and ")
    return " ".join(re.split(r"[\s_]+", spelled.casefold().strip("_ \t")))


def _query(
    path: Path, line: int, record: Mapping[str, Any], names: tuple[str, str | None], known: Mapping[str, Category]
) -> SourceQuery:
    text_field, category_field = names
    text = _text(path, line, record, text_field).strip()
    if not normalised(text):
        raise RowError(f"{path}, line {line}, field {text_field}: holds no word; take the line out")
    if category_field is None:
        return SourceQuery(text, None, line)
    given = _text(path, line, record, category_field)
    category = known.get(plain_name(given))
    if category is None:
        raise RowError(
            f"{path}, line {line}, field {category_field}: {given!r} is no known category; expected one of "
            f"{', '.join(known)}; map it by --category-as {given!r}=OURS, in a recipe "
            f"category_as: {{{given!r}: OURS}}, or read no categories by --no-categories, in a recipe categories: false"
        )
    return SourceQuery(text, category, line)


def _text(path: Path, line: int, record: Mapping[str, Any], name: str) -> str:
    if name not in record:
        raise RowError(f"{path}, line {line}, field {name}: missing; the line has {', '.join(record) or 'no fields'}")
    value = record[name]
    if not isinstance(value, str):
        raise RowError(f"{path}, line {line}, field {name}: expected text, got {type(value).__name__}")
    return value


def _text_field(path: Path, fields: list[str], layout: Layout) -> str:
    if layout.text_field is not None:
        return layout.text_field
    found = [name for name in fields if name.casefold() in TEXT_FIELDS]
    if len(found) != 1:
        which = f"several fields could be the query ({', '.join(found)})" if found else "no field is known as the query"
        raise RowError(
            f"{path}: {which}; name it by --text-field, in a recipe text_field. "
            f"The first line has {', '.join(fields) or 'none'}"
        )
    return found[0]


def _category_field(path: Path, fields: list[str], layout: Layout) -> str | None:
    if not layout.categories:
        return None
    if layout.category_field is not None:
        return layout.category_field
    found = [name for name in fields if name.casefold() in CATEGORY_FIELDS]
    if len(found) > 1:
        raise RowError(
            f"{path}: several fields could be the category ({', '.join(found)}); name it by --category-field, in a "
            "recipe category_field"
        )
    return found[0] if found else None


def _content(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RowError(f"{path}: can't be read ({error.strerror})") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise RowError(f"{path}, line {line}: isn't UTF-8; convert the file first") from error


def _jsonl(path: Path, content: str) -> Iterator[tuple[int, dict[str, Any]]]:
    decoder = msgspec.json.Decoder(dict[str, Any])
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield number, decoder.decode(line)
        except (msgspec.DecodeError, RecursionError) as error:
            raise RowError(f"{path}, line {number}: expected a JSON object ({error})") from error


def _csv(path: Path, content: str) -> Iterator[tuple[int, dict[str, Any]]]:
    lines = csv.reader(io.StringIO(content, newline=""), strict=True)
    names: list[str] | None = None
    began = 1
    try:
        for record in lines:
            number, began = began, lines.line_num + 1
            if not record:
                continue
            if names is None:
                names = _header(path, number, record)
                continue
            if len(record) != len(names):
                raise RowError(f"{path}, line {number}: {len(record)} fields, but the header names {len(names)}")
            yield number, dict(zip(names, record, strict=True))
    except csv.Error as error:
        raise RowError(f"{path}, line {began}: broken CSV ({error})") from error


def _header(path: Path, number: int, record: list[str]) -> list[str]:
    names = [name.strip() for name in record]
    if not all(names) or len(set(names)) != len(names):
        raise RowError(f"{path}, line {number}: expected a header whose names are there and differ, got {names}")
    return names
