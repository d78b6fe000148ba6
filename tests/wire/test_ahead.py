import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardtrace_proxy.wire.ahead import TokensAhead


def after(tokens: list[str], *texts: str) -> tuple[int, str]:
    ahead = TokensAhead()
    ahead.sample(tokens)
    for text in texts:
        ahead.say(text)
    return ahead.unsaid, ahead.text


@pytest.mark.parametrize(
    ("tokens", "texts", "left"),
    [
        (["ab", "c"], (), "abc"),
        (["ab", "c"], ("a",), "bc"),
        (["ab", "c"], ("abc", "d"), ""),
        # A parser that takes the tag out, one that lets it through, and one that cuts it.
        (["</think>", "ab"], ("ab",), ""),
        (["</think>", "ab"], ("</think>", "a"), "b"),
        (["</think>", "ab"], ("</th", "ink>", "a"), "b"),
        # A character in parts, alone and in a row with the next one's.
        (["\ufffd", "\ufffd", "ab"], ("ä", "a"), "b"),
        (["\ufffd\ufffd", "\ufffd", "ab"], ("äö", "a"), "b"),
        (["\ufffd", "ab"], ("ab",), ""),
    ],
)
def test_text_belongs_to_the_tokens_that_came_first(tokens: list[str], texts: tuple[str, ...], left: str) -> None:
    assert after(tokens, *texts)[1] == left


@pytest.mark.parametrize(
    ("tokens", "unsaid"),
    [(["ab", "</think>"], 2), ([" ab"], 3), (["</think>", "ab"], 10), (["<|im_end|>"], 0), (["\ufffd"], 0)],
)
def test_nothing_waits_for_a_marker_at_the_end(tokens: list[str], unsaid: int) -> None:
    assert after(tokens)[0] == unsaid


def test_a_text_of_many_tokens_takes_no_long() -> None:
    ahead = TokensAhead()
    ahead.sample(["ab"] * 200_000)
    started = time.process_time()
    assert ahead.compare(["ab" * 200_000]) == ""
    assert time.process_time() - started < 3
    assert ahead.unsaid == 0


@given(st.lists(st.sampled_from(["a", "bc", "</think>", "<|im_end|>", "\n", "[x]"]), max_size=12), st.data())
def test_whatever_is_said_in_pieces_is_counted_once(tokens: list[str], data: st.DataObject) -> None:
    text = "".join(tokens)
    cut = data.draw(st.integers(0, len(text)))
    ahead = TokensAhead()
    ahead.sample(tokens)
    assert 0 <= ahead.unsaid <= len(text)
    ahead.say(text[:cut])
    # What is still to come is at least the text of the tokens that nothing was said of.
    assert ahead.unsaid >= len(ahead.text)
    ahead.say(text[cut:])
    assert (ahead.unsaid, ahead.text, list(ahead.tokens)) == (0, "", [])
