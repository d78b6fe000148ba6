"""The table of failures: every row names what each side sees, and a test that there is."""

from __future__ import annotations

import ast
import re

import pytest

from tests.docs.pages import ROOT

PAGE = (ROOT / "docs" / "failures.md").read_text("utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if line.startswith("| ") and not line.startswith("| what fails")
]
TEST = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


def names_in(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_there_are_rows_for_each_side() -> None:
    assert len(ROWS) > 30
    assert re.findall(r"^## (\w+)$", PAGE, re.MULTILINE)[:4] == ["Client", "Upstream", "Auditor", "Proxy"]


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_a_row_names_its_tests(row: list[str]) -> None:
    assert len(row) == 6, row
    named = TEST.findall(row[5])
    assert named, "no test"
    for path, name in named:
        found = names_in(path)
        assert found
        assert not name or name in found, f"{path} has no {name}"


def test_no_fault_test_is_left_out() -> None:
    named = set(TEST.findall(PAGE))
    beside = {
        "test_events_pass_as_they_come",
        "test_harm_is_cut_and_the_upstream_closed",
        "test_nothing_but_the_api_is_served",
        "test_nothing_of_the_suite_depends_on_the_wall_clock",
    }
    for file in (ROOT / "tests" / "faults").glob("test_*.py"):
        path = file.relative_to(ROOT).as_posix()
        for name in names_in(path) - beside:
            assert (path, name) in named, f"{path}::{name} has no row"


def test_the_metrics_are_those_of_the_telemetry_page() -> None:
    telemetry = (ROOT / "docs" / "telemetry.md").read_text("utf-8")
    named = {name for row in ROWS for name in re.findall(r"guardtrace_\w+", row[4])}
    assert len(named) > 5
    assert {name for name in named if f"| `{name}` |" not in telemetry} == set()


@pytest.mark.parametrize(
    "message", sorted(set(re.findall(r"`([a-z][a-z ,]+ [a-z ,]+)`", "\n".join(row[3] for row in ROWS))))
)
def test_the_log_says_so(message: str) -> None:
    source = "\n".join(path.read_text("utf-8") for path in (ROOT / "guardtrace_proxy").rglob("*.py"))
    assert f'"{message}"' in source
