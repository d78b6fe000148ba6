"""Nothing is cut off in silence."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardtrace_proxy.auditor.window import GAP
from guardtrace_trainer.rows import Labelled
from guardtrace_trainer.stages import sft
from guardtrace_trainer.stages.encode import Encoder, Example, Tail
from guardtrace_trainer.stages.lengths import TooLong, encode_all, without_middle
from guardtrace_trainer.stages.settings import SftSettings
from tests.trainer.stages.corpora import annotation, fields


def row(thinking: str, number: int = 0) -> Labelled:
    return Labelled(**fields(number, 0.0, thinking=thinking), agreement="3:0", annotation=annotation(0.0))


def by_character(one: Labelled) -> Example:
    """A token a character, five of them for all that isn't thinking."""
    return Example(one.id, [ord(c) for c in one.thinking], (Tail([1, 2, 3, 4, 5]),))


@settings(deadline=None)
@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=200), st.integers(9, 120))
def test_as_much_of_beginning_and_end_stays_as_fits(thinking: str, limit: int) -> None:
    if len(thinking) + 5 <= limit:
        [example] = encode_all([row(thinking)], by_character, limit, drop_middle=True)
        assert example == by_character(row(thinking))
        return
    example = without_middle(row(thinking), by_character, limit)
    text = "".join(map(chr, example.prompt))
    head, gap, tail = text.partition(GAP)
    assert gap
    assert thinking.startswith(head)
    assert thinking.endswith(tail)
    assert len(head) - len(tail) in (0, 1)
    assert len(head) + len(tail) < len(thinking)
    assert example.length <= limit
    assert example.length == limit or len(head) + len(tail) == len(thinking) - 1


def test_long_rows_are_an_error_that_lists_all_of_them() -> None:
    rows = [row("x" * (10 * number), number) for number in range(40)]
    with pytest.raises(TooLong) as caught:
        encode_all(rows, by_character, 105, drop_middle=False)
    assert caught.value.ids == [f"t{number}" for number in range(11, 40)]
    assert "29 rows are longer than max_length, 105 tokens" in str(caught.value)
    assert "t11 (115)" in str(caught.value)
    assert "and 9 more" in str(caught.value)
    assert "drop_middle" in str(caught.value)


def test_what_doesnt_fit_without_any_thinking_is_an_error_all_the_same() -> None:
    def heavy(one: Labelled) -> Example:
        return replace(by_character(one), tails=(Tail([0] * 100),))

    with pytest.raises(TooLong, match="isn't thinking"):
        encode_all([row("x" * 50)], heavy, 90, drop_middle=True)


def test_query_answer_image_and_target_stay_whole(small, corpus) -> None:
    encoder = Encoder(small)
    long = row("First this. " + "And then that. " * 400 + "Finally done.", 1)
    dropping = SftSettings(long_traces="drop_middle")
    [example] = sft.examples([(corpus, long)], encoder, dropping, limit=700, seed=0)
    assert example.length <= 700
    text = encoder.processor.tokenizer.decode(example.prompt)
    assert f"Current Task Query: {long.question}\n" in text
    assert f"Current Task Cleaned Response: {long.answer}<|im_end|>" in text
    assert "Current Task Thinking: First this." in text
    assert GAP in text
    assert "Finally done.\n" in text
    assert text.count("<|image_pad|>") == 4
    assert list(example.tails) == [encoder.reply(long.annotation)]
    with pytest.raises(TooLong, match=r"t1 \(\d{4}\)"):
        sft.examples([(corpus, long)], encoder, SftSettings(), limit=700, seed=0)
