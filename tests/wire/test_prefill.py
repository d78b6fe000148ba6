"""Prefills: what of them is thinking, and whether the model goes on thinking."""

from __future__ import annotations

from typing import Literal

import pytest

from guardtrace_proxy.wire.prefill import leaves_open, opening_of
from guardtrace_proxy.wire.request import Prefill
from guardtrace_proxy.wire.tags import ThinkingStyle

AUTO = ThinkingStyle()
OPEN = ThinkingStyle("inline", starts_open=True)


def split(
    content: str, thinking: str = "", style: ThinkingStyle = AUTO, continues: bool = True
) -> tuple[str, str, bool]:
    opening = opening_of(Prefill("messages[1]", content, thinking, continues), style)
    assert opening.style.style == style.style
    return opening.thinking, opening.answer, opening.style.starts_open


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("Well,", ("", "Well,", False)),
        ("<think>So", ("So", "", True)),
        ("<think>", ("", "", True)),
        ("◁think▷So", ("So", "", True)),
        ("<think>So</think>", ("So", "", False)),
        ("<think>So</think>Well,", ("So", "Well,", False)),
        ("<think>So</think><answer>Well,", ("So", "Well,", False)),
        ("Well, <think>so", ("so", "Well, ", True)),
        ("Well <thi", ("", "Well <thi", False)),
        ("", ("", "", False)),
    ],
)
def test_a_thinking_block_belongs_to_the_thinking(content: str, expected: tuple[str, str, bool]) -> None:
    assert split(content) == expected


def test_reasoning_fields_come_first() -> None:
    assert split("Well,", "So") == ("So", "Well,", False)
    assert split("<think>then", "So") == ("So\nthen", "", True)


@pytest.mark.parametrize(
    ("content", "continues", "starts_open"),
    [
        # The template opens the thinking of a new message only.
        ("Well,", True, False),
        ("Well,", False, True),
        # With no content, or only fields, nobody knows where the template goes on.
        ("", True, True),
        ("<think>So", False, True),
    ],
)
def test_an_upstream_that_starts_open(content: str, continues: bool, starts_open: bool) -> None:
    assert split(content, style=OPEN, continues=continues)[2] == starts_open


@pytest.mark.parametrize("style", ["field", "inline", "auto"])
def test_tags_are_read_whatever_the_upstream_writes(style: Literal["field", "inline", "auto"]) -> None:
    # The prefill goes into the prompt, where the tags are the model's own even if its replies have fields.
    thinking, answer, starts_open = split("<think>So", style=ThinkingStyle(style))
    assert (thinking, answer) == ("So", "")
    assert starts_open == (style != "field")


def test_an_operators_own_tags() -> None:
    style = ThinkingStyle("custom", open="[T]", close="[A]")
    assert split("[T]So[A]Well,", style=style) == ("So", "Well,", False)
    assert split("[T]So", style=style) == ("So", "", True)


@pytest.mark.parametrize(
    ("content", "continues", "expected"),
    [
        ("So", True, ("", "So", False)),
        ("So", False, ("", "So", True)),
        ("So[A]Well,", True, ("So", "Well,", False)),
        ("So[A]", True, ("So", "", False)),
        ("", True, ("", "", True)),
    ],
)
def test_where_only_a_closing_tag_comes(content: str, continues: bool, expected: tuple[str, str, bool]) -> None:
    style = ThinkingStyle("custom", starts_open=True, close="[A]")
    assert split(content, style=style, continues=continues) == expected


def test_without_an_opening_tag_no_prompt_ends_inside_a_block() -> None:
    style = ThinkingStyle("custom", starts_open=True, close="[A]")
    assert not any(leaves_open(prompt, style) for prompt in ("", "So", "So[A]", "So[A]Well,[A]"))


def test_a_prompt_may_hold_a_long_conversation() -> None:
    assert leaves_open("<think>a</think>b" * 200 + "<think>", AUTO)
    assert not leaves_open("<think>a</think>b" * 200, AUTO)
