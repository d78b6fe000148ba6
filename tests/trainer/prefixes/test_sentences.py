"""Thinking in sentences: exact, and sane with what isn't prose."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardtrace_trainer.prefixes.sentences import prefix, split

TEXT = st.text(st.sampled_from('aB1 .!?…。！」"”)\n`~-*:,é的'), max_size=80) | st.text(max_size=60)


@pytest.mark.parametrize(
    "sentences",
    [
        ["One thing. ", "Another! ", "A third? ", "Done."],
        ['He said "stop." ', "Then he left."],
        ["It costs 3.14 or 2.5 dollars. ", "Cheap."],
        ["Dr. Smith met Mr. J. R. Jones at the U.S. embassy. ", "He stayed."],
        ["Use e.g. salt, i.e. the plain kind, vs. sugar. ", "Stir."],
        ["Bring salt, pepper etc. ", "Then stir."],
        ["It opens at 9 a.m. and closes at 5 p.m. on Fridays. ", "Go."],
        ["So that is what I. ", "Hm."],
        ["First:\n", "1. Open the box. ", "Look inside.\n", "2. Close it.\n", "- a point\n", "- B. another point"],
        ["Hmm... wait. ", "Let me see… ", "Right!"],
        ['"Why?" he asked. ', "No answer."],
        ["Call `os.path. Join` here. ", "Then stop."],
        ["今天天气很好。", "我们出去吧！", "“好吗？”", "他问。 ", "Yes."],
        ["見て。」", "彼は言った。"],
        ["Look:\n\n", "```python\n", "x = 1. \n", "print(x. y)\n", "```\n", "That prints. ", "Done."],
        ["Open a file.txt and v1.2.3 at example.com/a.b. ", "Then go."],
        ["See Fig. 3 and No. 5. ", "She said no. ", "Good."],
        ["Two steps. ", "1. Knock. ", "2. Wait a bit. ", "Done."],
        ["A line without an end\n\t", "another one\n\n\n", "last"],
        ["Is it?! ", "Yes!!! ", "OK."],
        ["**Bold claim.** ", "More."],
    ],
)
def test_sentences_are_found(sentences):
    assert split("".join(sentences)) == sentences


def test_white_space_belongs_to_the_sentence_before_it():
    assert split("\n  One.  Two.\n\n") == ["\n  One.  ", "Two.\n\n"]
    assert split("") == []
    assert split(" \n ") == [" \n "]


def test_an_unclosed_fence_is_code_to_the_end():
    assert split("So. Now:\n~~~\na. B\nc. D") == ["So. ", "Now:\n", "~~~\n", "a. B\n", "c. D"]


@given(TEXT)
def test_joined_they_are_the_text_again(text):
    sentences = split(text)
    assert "".join(sentences) == text
    assert all(sentence.strip() for sentence in sentences) or not text.strip()


@given(TEXT)
def test_a_beginning_of_whole_sentences_is_split_alike(text):
    sentences = split(text)
    for count in range(1, len(sentences)):
        assert split("".join(sentences[:count]))[: count - 1] == sentences[: count - 1]


@given(TEXT)
def test_prefixes_leave_out_white_space_behind(text):
    sentences = split(text)
    for count in range(1, len(sentences) + 1):
        assert prefix(sentences, count) == "".join(sentences[:count]).rstrip()
    assert prefix(sentences, 0) == ""
