"""The threat model: every attack names what stops it and the tests that show it; what isn't stopped is said."""

from __future__ import annotations

import re

import pytest

from tests.docs.pages import NAMED_TEST, ROOT, named_in, rows_of

PAGE = (ROOT / "docs" / "threat-model.md").read_text("utf-8")
ROWS = rows_of(PAGE)


def test_there_are_attackers_and_rows_for_each() -> None:
    headings = re.findall(r"^## (.+)$", PAGE, re.MULTILINE)
    assert len(headings) > 6
    assert len(ROWS) > 40
    for part in PAGE.split("\n## ")[1:-1]:
        assert rows_of(part), part[:40]


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_an_attack_names_tests_that_there_are(row: list[str]) -> None:
    attack, stops, tests = row
    assert attack
    assert stops
    named = NAMED_TEST.findall(tests)
    assert named, "no test"
    for path, name in named:
        assert name in named_in(path), f"{path} has no {name}"
        assert not path.startswith("tests/vllm/"), "not collected by `make test`"


def test_what_isnt_defended_stands_at_the_end() -> None:
    last = PAGE.split("\n## ")[-1]
    assert last.startswith("What isn't defended")
    assert len(re.findall(r"^- ", last, re.MULTILINE)) > 8
    assert "[its card](embedded-auditor.md)" in last
