"""Printable text: nothing in it drives a terminal."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardtrace_trainer.terminal import printable, quoted


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\nlines", "plain\nlines"),
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("a\rb\r\nc", "a\\rb\\r\nc"),
        ("a\tb", "a    b"),
        ("\x9b31m", r"\x9b31m"),
        ("\u202eevil\u200b", r"\u202eevil\u200b"),
        ("a\u2028b\x85c", r"a\u2028b\x85c"),
        ("\ud800", r"\ud800"),
        ("日本語 é 🙂", "日本語 é 🙂"),
    ],
)
def test_printable(text, shown):
    assert printable(text) == shown


@given(st.text(st.characters()))
def test_no_control_is_left(text):
    assert all(c == "\n" or unicodedata.category(c)[0] != "C" for c in printable(text))
    assert printable(text).count("\n") == text.count("\n")


@given(st.text())
def test_every_line_is_marked(text):
    assert all(line.startswith("  | ") for line in quoted(text).split("\n"))
