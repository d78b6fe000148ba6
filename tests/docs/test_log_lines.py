"""Every warning and error of the log stands in the operators' table."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from tests.docs.pages import ROOT, rows_of

PAGE = (ROOT / "docs" / "operations.md").read_text("utf-8")
LEVELS = {"warning", "error", "exception", "critical"}


def said() -> Iterator[tuple[str, str]]:
    """The file and the event of each warning and error."""
    for file in sorted((ROOT / "guardtrace_proxy").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            logger = node.func.value
            if node.func.attr in LEVELS and isinstance(logger, ast.Name) and logger.id == "log":
                event = node.args[0]
                assert isinstance(event, ast.Constant), f"{file}:{node.lineno}: an event is written out"
                yield file.relative_to(ROOT).as_posix(), event.value


def test_every_warning_and_error_stands_in_the_table() -> None:
    table = PAGE.partition("| warning or error |")[2].partition("\n\n")[0]
    named = {name for row in rows_of(table) for name in re.findall(r"`([^`]+)`", row[0])}
    events = set(said())
    assert len(events) > 30
    assert {(file, event) for file, event in events if event not in named} == set()
