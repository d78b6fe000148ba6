from __future__ import annotations

import pytest

from guardtrace_proxy.auditor.quotations import leaves_quote_open


@pytest.mark.parametrize(
    "piece",
    [
        "",
        "nothing is quoted",
        "“Analysis”: it wrote “one”, then “two”",
        'it wrote "one" and "two"',
        "it wrote ＂one＂",
        "«one» »two« „three“ „four” 「five」『six』",
        "`one` and ```two```",
        "'one' and ‘two’, 'it isn't three', ('four')",
        "don't, won’t, it´s, O'Neil, 6'2",
        "the users' names and the users’ data",
        "as in the ’90s",
        "“the users' names”",
        '""',
    ],
)
def test_quotations_that_end_leave_none_open(piece: str) -> None:
    assert not leaves_quote_open(piece)


@pytest.mark.parametrize(
    "piece",
    [
        "it wrote “one",
        "it wrote “one “two” three",
        "one” it wrote",
        'it wrote "one',
        'it wrote "one "two" three',
        "it wrote «one",
        "it wrote „one",
        "it wrote ‟one",
        "it wrote „one“ and „two",
        "it wrote 「one",
        "it wrote `one",
        "it wrote 'one",
        "it wrote ('one",
        "it wrote 'one isn't two",
        "it wrote ‘one",
        ": 0'",
        ": 0.’",
        'a 5" pipe',
    ],
)
def test_one_that_does_not_end_or_did_not_begin_is_open(piece: str) -> None:
    assert leaves_quote_open(piece)
