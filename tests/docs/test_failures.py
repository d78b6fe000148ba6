"""The table of failures: every row names what each side sees, and a test that there is."""

from __future__ import annotations

import re

import pytest

from tests.docs.pages import NAMED_TEST, ROOT, named_in, rows_of

PAGE = (ROOT / "docs" / "failures.md").read_text("utf-8")
ROWS = rows_of(PAGE)
MESSAGE = re.compile(r"`([a-z][a-z ,']+ [a-z ,']+)`")
"""Of the log: words, no name or value."""
SHARED = {"tests/server/test_metrics.py", "tests/faults/test_upstream_faults.py"}


def test_there_are_rows_for_each_side() -> None:
    assert len(ROWS) > 30
    assert re.findall(r"^## (\w+)$", PAGE, re.MULTILINE)[:4] == ["Client", "Upstream", "Auditor", "Proxy"]


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_a_row_names_its_tests(row: list[str]) -> None:
    assert len(row) == 6, row
    named = NAMED_TEST.findall(row[5])
    assert named, "no test"
    for path, name in named:
        found = named_in(path)
        assert found
        assert not name or name in found, f"{path} has no {name}"


def test_no_fault_test_is_left_out() -> None:
    named = set(NAMED_TEST.findall(PAGE))
    beside = {
        "test_events_pass_as_they_come",
        "test_harm_is_cut_and_the_upstream_closed",
        "test_nothing_but_the_api_is_served",
        "test_nothing_of_the_suite_depends_on_the_wall_clock",
    }
    for file in (ROOT / "tests" / "faults").glob("test_*.py"):
        path = file.relative_to(ROOT).as_posix()
        for name in named_in(path) - beside:
            assert (path, name) in named, f"{path}::{name} has no row"


def test_the_metrics_are_those_of_the_telemetry_page() -> None:
    telemetry = (ROOT / "docs" / "telemetry.md").read_text("utf-8")
    named = {name for row in ROWS for name in re.findall(r"guardtrace_\w+", row[4])}
    assert len(named) > 5
    assert {name for name in named if f"| `{name}` |" not in telemetry} == set()


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_a_test_looks_for_what_log_and_metrics_say(row: list[str]) -> None:
    """One that the row names, or that all rows share."""
    files = {path for path, _ in NAMED_TEST.findall(row[5])} | SHARED
    source = "\n".join((ROOT / path).read_text("utf-8") for path in files)
    for said in (*MESSAGE.findall(row[3]), *re.findall(r"guardtrace_(\w+)", row[4])):
        assert said in source, f"no named test looks for {said}"


@pytest.mark.parametrize("message", sorted(set(MESSAGE.findall("\n".join(row[3] for row in ROWS)))))
def test_the_log_says_so(message: str) -> None:
    source = "\n".join(path.read_text("utf-8") for path in (ROOT / "guardtrace_proxy").rglob("*.py"))
    assert f'"{message}"' in source
