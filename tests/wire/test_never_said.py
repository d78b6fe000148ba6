"""Tokens of a whole reply held against its texts."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardtrace_proxy.wire.never_said import never_said

ARGUMENTS = '{"at": "the [1] <b>end</b>"}'
CALL = '\n{"name": "look", "arguments": {"at": "the end"}}\n'


@pytest.mark.parametrize(
    ("tokens", "texts"),
    [
        ([], ["yes"]),
        (["It", " is", " four."], ["It is four."]),
        (["It is", " four."], ["hm", "It is four.", "a title beside it"]),
        # Parsers take tags out and strip what stands around them, in one token or in several.
        (["hm\n", "</think>", "\n\n", "yes", "<|im_end|>"], ["hm", "yes"]),
        (["<think>", "hm", "</", "think", ">", "\n\nyes"], ["hm", "yes"]),
        (["<think>", "hm", "</think>", "yes"], ["<think>hm</think>yes"]),
        (["<tool_call>", ARGUMENTS, "</tool_call>"], ["look", ARGUMENTS]),
        # Of some tokenizers a token by itself has lost its space.
        (["It", "is", "four."], ["It is four."]),
        # Characters in parts, as vLLM and OpenAI write them.
        (["\ufffd", "\ufffd", " is", " \ufffd", "\ufffd", ".", "<|im_end|>"], ["ä is ö."]),
        (["Yes ", "\\xf0\\x9f", "\\x98\\x80", "!", "<|im_end|>"], ["Yes 😀!"]),
        (['"\\xf0', '\\x9f"', "<|im_end|>"], ['"\\xf0\\x9f"']),
        (["token_id:7", "token_id:8"], ["yes"]),
        (["<|im_end|>", "", "\n"], []),
    ],
)
def test_tokens_that_texts_say_are_no_text_of_their_own(tokens: list[str], texts: list[str]) -> None:
    assert never_said(tokens, texts) == ""


@pytest.mark.parametrize(
    ("tokens", "texts", "left"),
    [
        # A stop string, or what a server left out behind it.
        (["Sure.", " hidden", " text"], ["Sure."], " hidden text"),
        (["hm", "</think>", "Su", "re.", " hidden"], ["hm", "Sure."], " hidden"),
        (["<tool_call>", CALL, "</tool_call>", " Now more."], ["look", '{"at":"the end"}'], f"{CALL}\n Now more."),
        (["hidden", "</think>", "yes"], ["yes"], "hidden"),
        # What is said once doesn't stand for what is sampled twice, nor in another order.
        (["no", "<|im_end|>", "no"], ["no"], "no"),
        (["b", "<|im_end|>", "a"], ["ab"], "a"),
        # As many characters, and others.
        (["other"], ["thing"], "other"),
        (["The other", " end"], ["The thing end"], "The other end"),
        (["only"], [], "only"),
        (["\\xe6\\xaf", "\\x92"], ["fine"], "毒"),
        (["Sure.", "token_id:x"], ["Sure."], "token_id:x"),
    ],
)
def test_what_no_text_says_is_left(tokens: list[str], texts: list[str], left: str) -> None:
    assert never_said(tokens, texts) == left


@given(
    st.lists(st.sampled_from(["a", "bc ", "</think>", "<|im_end|>", "\n", "[x]", "\ufffd", "{"]), max_size=12),
    st.data(),
)
def test_nothing_is_left_of_what_was_said_and_nothing_lost_of_what_was_not(
    tokens: list[str], data: st.DataObject
) -> None:
    text = "".join(tokens)
    cut = data.draw(st.integers(0, len(text)))
    assert never_said(tokens, [text[:cut], text[cut:]]) == ""
    hidden = data.draw(st.integers(0, len(tokens)))
    with_more = [*tokens[:hidden], "毒", *tokens[hidden:]]
    assert "毒" in never_said(with_more, [text])


def test_many_runs_that_nothing_says_take_no_long() -> None:
    started = time.process_time()
    tokens = ["ab", "<|x|>"] * 100_000
    assert never_said(tokens, ["a" * 1_000_000]).count("b") == 100_000
    assert time.process_time() - started < 10


def test_neither_do_they_before_a_text_that_was_not_said_to_its_end() -> None:
    started = time.process_time()
    tokens = ["lorem", *["<|x|>", "zq"] * 50_000]
    assert never_said(tokens, ["lorem " * 200_000]).count("zq") == 50_000
    assert time.process_time() - started < 5
