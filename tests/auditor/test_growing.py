"""A text that grows is encoded as if it were new."""

from __future__ import annotations

import json
import threading
import time

import pytest

pytest.importorskip("torch", reason="the extra `local` isn't installed")

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from guardtrace_proxy.auditor import BUILT_IN
from guardtrace_proxy.auditor.checkpoint import load_checkpoint
from guardtrace_proxy.auditor.growing import GrowingText, common_length, encoded, has_borders
from tests.auditor.checkpoints import make_tokenizer

WORDS = ["a", "The user", "don't", " 'LL", "é", "e\u0301", "日本", "👩\u200d🚀", "ﬁ", "\u0958", "\U0001d160", "\u0344"]
MARKS = ["\u0301", "\u0338", "\u200d", "\u202e", ".", "?!", "(", "“", "12", "0.5", "=", "<|im_end|>", "\x00"]
SPACES = [" ", "  ", "\t", "\r", "\r\n", "\x0b", "\x1c", "\x85", "\xa0", "\u2028", "\u3000", " x y z"]
BREAKS = ["\n", "\n\n", " \n", "\n- ", "\n#"]
PARTS = [*WORDS, *MARKS, *SPACES, *BREAKS]
TEXTS = st.lists(st.one_of(st.sampled_from(PARTS), st.text(max_size=3)), max_size=40).map("".join)
CHANGES = st.lists(st.tuples(st.integers(0, 30), TEXTS), min_size=1, max_size=6)


def tokenizers() -> list[Tokenizer]:
    return [make_tokenizer().backend_tokenizer, load_checkpoint(BUILT_IN).processor.tokenizer.backend_tokenizer]


@pytest.fixture(scope="module", params=[0, 1], ids=["tiny", "nano"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return tokenizers()[request.param]


@settings(max_examples=300, deadline=None)
@given(CHANGES)
def test_ids_are_those_of_the_whole_text(tokenizer: Tokenizer, changes: list[tuple[int, str]]) -> None:
    growing, text = GrowingText(), ""
    for removed, added in changes:
        text = text[: max(0, len(text) - removed)] + added
        assert growing.encode(tokenizer, text) == tokenizer.encode(text, add_special_tokens=False).ids


class Counting:
    """A tokenizer that says how many characters it was given."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.characters = 0
        self._tokenizer = tokenizer

    def encode(self, text: str, **settings: bool) -> object:
        self.characters += len(text)
        return self._tokenizer.encode(text, **settings)


@pytest.mark.parametrize("sentence", ["The user wants bread. ", "one two\n", "Zwei und zwei sind vier, "])
def test_only_what_is_new_is_encoded(tokenizer: Tokenizer, sentence: str) -> None:
    counting, growing = Counting(tokenizer), GrowingText()
    for count in range(1, 200):
        growing.encode(counting, sentence * count + "\nthe tail")  # type: ignore[arg-type]
    assert counting.characters < 199 * 3 * len(sentence + "\nthe tail")


def test_while_a_long_text_is_encoded_other_threads_go_on(tokenizer: Tokenizer) -> None:
    began, text = time.perf_counter(), "The quick brown fox jumps over it. " * 15_000
    thread = threading.Thread(target=encoded, args=(tokenizer, text))
    thread.start()
    last, stood_still = began, 0.0
    while thread.is_alive():
        time.sleep(0.001)
        now = time.perf_counter()
        last, stood_still = now, max(stood_still, now - last)
    assert stood_still < (last - began) / 2


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "Lowercase"}},
        {"pre_tokenizer": None},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}},
    ],
)
def test_a_tokenizer_that_splits_otherwise_has_no_borders(tokenizer: Tokenizer, change: dict[str, object]) -> None:
    assert has_borders(tokenizer)
    other = Tokenizer.from_str(json.dumps({**json.loads(tokenizer.to_str()), **change}))
    assert not has_borders(other)


@given(st.lists(st.integers(0, 1)), st.lists(st.integers(0, 1)))
def test_the_common_length_is_the_longest(one: list[int], other: list[int]) -> None:
    length = common_length(one, other)
    assert one[:length] == other[:length]
    assert one[length : length + 1] != other[length : length + 1] or length == min(len(one), len(other))
