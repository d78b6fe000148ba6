"""The page of the audit log names each field in its order, and its lines are real ones."""

from __future__ import annotations

import json
import re

import msgspec

from guardtrace_proxy.records.lines import DecisionLine, Evidence, Gap
from tests.docs.pages import ROOT, blocks

PAGE = (ROOT / "docs" / "audit-log.md").read_text("utf-8")


def fields_of(table: str) -> list[str]:
    """The names in the first column of the table with this heading."""
    rows = PAGE[PAGE.index(table) :].split("\n\n")[0].splitlines()[2:]
    return [name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])]


def test_every_field_is_in_the_table_in_its_order() -> None:
    assert fields_of("| field | what it is |") == ["kind", *DecisionLine.__struct_fields__]
    assert fields_of("| field of `evidence` |") == list(Evidence.__struct_fields__)


def test_the_lines_shown_are_whole() -> None:
    shown = [block.text for block in blocks("json") if block.page.name == "audit-log.md"]
    kinds = [type(msgspec.json.decode(text, type=DecisionLine | Gap)) for text in shown]
    assert kinds == [DecisionLine, Gap]
    for text, kind in zip(shown, kinds, strict=True):
        assert list(json.loads(text)) == ["kind", *kind.__struct_fields__]
