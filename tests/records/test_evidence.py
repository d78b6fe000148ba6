"""What redacted evidence masks, and that no text makes that slow."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardtrace_proxy.records.evidence import MAX_CHARS, shown

CASES = [
    ("write to ann.lee+x@mail.example.com now", "write to [email] now"),
    ("see https://user:pw@example.com/a?b=c, or HTTP://x.y", "see [url] or [url]"),
    ("call +44 20 7946 0958 or (555) 010-4477", "call [number] or ([number]"),
    ("card 4111 1111 1111 1111.", "card [number]."),
    ("from 10.0.0.7 and 2001:db8::8a2e:370:7334", "from [address] and [address]"),
    ("the key sk-proj-AbC123dEf456GhI789jKl is", "the key [secret] is"),
    ("In 2024, 3.5 of 100 were well-known state-of-the-art.", "In 2024, 3.5 of 100 were well-known state-of-the-art."),
]


@pytest.mark.parametrize(("text", "expected"), CASES)
def test_masked(text: str, expected: str) -> None:
    assert shown(text, redact=True) == expected
    assert shown(text, redact=False) == text


def test_of_a_long_text_the_end_is_kept() -> None:
    text = "a " * MAX_CHARS + "the end"
    for redact in (False, True):
        found = shown(text, redact=redact)
        assert found.startswith("…")
        assert found.endswith("a a the end")
        assert MAX_CHARS - 1 <= len(found) <= MAX_CHARS + 1


@pytest.mark.parametrize(
    "secret",
    [
        "https://example.com/reset?user=ann&token=abc",
        "ann.lee@example.com",
        "+44 20 7946 0958",
        "sk-AbC123dEf456GhI789jKl",
    ],
)
def test_what_a_cut_left_of_something_masked_isnt_shown(secret: str) -> None:
    rest = "and so on to the end " * MAX_CHARS
    for cut in range(1, len(secret)):
        left = secret[cut:] + " "
        kept = rest[: MAX_CHARS - len(left)]
        assert shown(secret[:cut] + left + kept, redact=True) == f"…{kept}"


@pytest.mark.parametrize("piece", ["a", "1", "1 ", "a.", "a@", "a@a.", ":", "f:", "http://", "A1/", "-", "1.", "(" * 3])
def test_no_text_is_slow(piece: str) -> None:
    began = time.process_time()  # what else is busy doesn't count
    shown(piece * MAX_CHARS, redact=True)
    assert time.process_time() - began < 1


@given(st.text())
def test_any_text_can_be_shown(text: str) -> None:
    assert shown(text, redact=False) == text
    shown(text, redact=True).encode("utf-8", "surrogatepass")
