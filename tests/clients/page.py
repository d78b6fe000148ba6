"""The tables of docs/clients.md, and how an observation is written in them."""

from __future__ import annotations

import re
from typing import Any

from tests.clients.driving import ROOT

PAGE = ROOT / "docs" / "clients.md"
TABLE = re.compile(r"<!-- clients: (?P<name>\w+) -->\n(?P<rows>(?:\|.*\n)+)")
THINKING = "Two and two are easily added so we get four."
ANSWER = "Four is what I get."
MESSAGE = "This response was stopped by policy."


def tables() -> dict[str, dict[str, dict[str, str]]]:
    """Table, client and column to the cell's text."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    for table in TABLE.finditer(PAGE.read_text("utf-8")):
        head, _, *rows = [[cell.strip() for cell in row.strip("|\n").split("|")] for row in table["rows"].splitlines()]
        named = {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}
        assert len(named) == len(rows), f"{PAGE.name}: a client stands twice in a table"
        found[table["name"]] = named
    return found


def cell(seen: dict[str, Any], whole: str = THINKING) -> str:
    """What a client showed, in the page's words. ``whole`` is the thinking as the upstream wrote it: how much of it left
    before a cut depends on how the audits fell."""
    thinking, text = seen["thinking"].strip(), seen["text"].strip()
    parts = [
        extent("reasoning", thinking, whole),
        "message" if text == MESSAGE else extent("answer", text, ANSWER),
        code(seen["finish"]),
        code(seen["error"]),
    ]
    return ", ".join(part for part in parts if part)


def extent(kind: str, text: str, whole: str) -> str:
    assert whole.startswith(text), f"neither the {kind} nor a beginning of it: {text}"
    return f"{kind} so far" if text and text != whole else kind if text else ""


def code(name: str | None) -> str:
    return f"`{name}`" if name else ""
