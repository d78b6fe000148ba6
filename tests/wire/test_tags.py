"""Inline thinking tags, split anywhere."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from guardtrace_proxy.wire.events import Phase, Segment
from guardtrace_proxy.wire.tags import KNOWN_PAIRS, MAX_TAGS, TagPair, TagReader
from tests.wire.cuts import cut, in_two, one_by_one, places
from tests.wire.replies import joined, shown

THINKING, ANSWERING = Phase.THINKING, Phase.ANSWERING
APRIEL = (TagPair(None, "[BEGIN FINAL RESPONSE]"),)


def read(*pieces: str, pairs: tuple[TagPair, ...] = KNOWN_PAIRS, starts_open: bool = False) -> list[Segment]:
    reader = TagReader(pairs, starts_open)
    segments = [segment for piece in pieces for segment in reader.feed(piece)]
    return joined(segments + reader.end())


WHOLE = [
    ("", ""),
    ("hello", "A:hello"),
    ("<think>hm</think>yes", "[<think>] T:hm [</think>] A:yes"),
    ("<think></think>", "[<think>] [</think>]"),
    ("first<think>hm</think>yes", "A:first [<think>] T:hm [</think>] A:yes"),
    ("<think>a</think>b<think>c</think>d", "[<think>] T:a [</think>] A:b [<think>] T:c [</think>] A:d"),
    ("◁think▷hm◁/think▷yes", "[◁think▷] T:hm [◁/think▷] A:yes"),
    ("<think>hm◁/think▷</think>yes", "[<think>] T:hm◁/think▷ [</think>] A:yes"),
    ("<think>a<think>b</think>c", "[<think>] T:a<think>b [</think>] A:c"),
    ("<think>never closed", "[<think>] T:never closed"),
    ("<think>hm</think><answer>yes</answer>", "[<think>] T:hm [</think>] [<answer>] A:yes [</answer>]"),
    ("<think><answer>hm</think>yes", "[<think>] T:<answer>hm [</think>] A:yes"),
    ("opened by the template</think>yes", "A:opened by the template [</think>] A:yes"),
    ("1 < 2 <thin", "A:1 < 2 <thin"),
    ("<think>1 < 2 </thin", "[<think>] T:1 < 2 </thin"),
    ("<<think>>hm<</think>>", "A:< [<think>] T:>hm< [</think>] A:>"),
    ("<Think>hm</Think>", "A:<Think>hm</Think>"),
]


@pytest.mark.parametrize(("text", "expected"), WHOLE)
def test_tags_are_read_wherever_they_are_split(text: str, expected: str) -> None:
    assert shown(read(text)) == expected
    assert read(*one_by_one(text)) == read(text)
    for pieces in in_two(text):
        assert read(*pieces) == read(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hm</think>yes", "T:hm [</think>] A:yes"),
        ("hm◁/think▷yes", "T:hm [◁/think▷] A:yes"),
        ("hm", "T:hm"),
        ("<think>hm</think>yes", "T:<think>hm [</think>] A:yes"),
        ("a</think>b<think>c</think>d", "T:a [</think>] A:b [<think>] T:c [</think>] A:d"),
    ],
)
def test_a_block_that_the_template_has_opened(text: str, expected: str) -> None:
    assert shown(read(text, starts_open=True)) == expected
    assert read(*one_by_one(text), starts_open=True) == read(text, starts_open=True)


def test_tags_of_the_operators_own() -> None:
    text = "steps <think> [BEGIN FINAL RESPONSE]yes"
    assert shown(read(text, pairs=APRIEL, starts_open=True)) == "T:steps <think>  [[BEGIN FINAL RESPONSE]] A:yes"
    pairs = (TagPair("[THINK]", "[/THINK]"),)
    assert shown(read("[THINK]hm[/THINK]<think>", pairs=pairs)) == "[[THINK]] T:hm [[/THINK]] A:<think>"
    same = (TagPair("***", "***"),)
    assert shown(read("***hm***yes***again", pairs=same)) == "[***] T:hm [***] A:yes [***] T:again"


def test_text_inside_a_block_says_how_it_would_be_closed() -> None:
    closes = [segment.close for segment in read("a<think>b</think>c◁think▷d◁/think▷<answer>e</answer>")]
    think, kimi = "</think>", "◁/think▷"
    assert closes == [None, think, think, think, None, kimi, kimi, kimi, None, None, None]
    assert [segment.close for segment in read("a</think>b", starts_open=True)] == [think, think, None]
    assert read("</think>")[0].close is None


def test_what_cannot_become_a_tag_does_not_wait() -> None:
    reader = TagReader(KNOWN_PAIRS, False)
    assert reader.feed("1 <") == [Segment(ANSWERING, "1 ")]
    assert reader.feed(" 2 <thi") == [Segment(ANSWERING, "< 2 ")]
    assert reader.feed("ef>") == [Segment(ANSWERING, "<thief>")]
    assert reader.feed("<think>h<") == [
        Segment(THINKING, "<think>", True, "</think>"),
        Segment(THINKING, "h", False, "</think>"),
    ]
    # Inside a block only its own end is a tag.
    assert reader.feed("think") == [Segment(THINKING, "<think", False, "</think>")]
    assert reader.feed("</") == []
    assert reader.end() == [Segment(THINKING, "</", False, "</think>")]
    assert reader.end() == []


@pytest.mark.parametrize(
    "pair",
    [
        TagPair("##", "###"),
        TagPair("###", "##"),
        TagPair("Response:", "Final Response:"),
        TagPair("Final Response:", "Response:"),
        TagPair("think", "</think>"),
        TagPair("aab", "aa"),
    ],
)
def test_a_tag_that_lies_in_another_is_not_taken_before_the_other_can_be_ruled_out(pair: TagPair) -> None:
    assert pair.open is not None
    for text in (f"a{pair.open}b{pair.close}c", f"a{pair.close}b{pair.open}c", pair.open, pair.close):
        whole = read(text, pairs=(pair,))
        assert read(*one_by_one(text), pairs=(pair,)) == whole
        for pieces in in_two(text):
            assert read(*pieces, pairs=(pair,)) == whole


def test_very_many_tags_are_read_in_one_pass() -> None:
    # Cut off one by one from the front of the rest, this would take minutes.
    count = 100_000
    segments = TagReader(KNOWN_PAIRS, False, max_tags=2 * count).feed("<answer>a" * count + "<")
    assert (len(segments), "".join(segment.text for segment in segments[:4])) == (2 * count, "<answer>a<answer>a")


@pytest.mark.parametrize("starts_open", [False, True])
@pytest.mark.parametrize(
    "text", ["<think>a</think>b" * 999, "a</think><answer>" * 999, "a</think>b<think>" * 999 + "</thi"]
)
def test_behind_so_many_tags_they_are_text(text: str, starts_open: bool) -> None:
    """Each asks for an audit of what stands before it."""
    whole = read(text, starts_open=starts_open)
    assert sum(segment.tag for segment in whole) in (MAX_TAGS, MAX_TAGS + 1)
    assert "".join(segment.text for segment in whole) == text
    assert (whole[-1].phase, whole[-1].tag) == (ANSWERING, False)
    assert read(*one_by_one(text), starts_open=starts_open) == whole
    reader = TagReader(KNOWN_PAIRS, starts_open)
    reader.feed(text)
    assert reader.passes("<")
    assert reader.close is None


def test_the_block_that_stands_open_behind_so_many_tags_ends() -> None:
    last = read("<answer>" * (MAX_TAGS - 1) + "<think>a</think>b</think><think>c")[-4:]
    assert shown(last) == "[<think>] T:a [</think>] A:b</think><think>c"


def by_one_pattern(text: str, pairs: tuple[TagPair, ...], starts_open: bool) -> list[tuple[Phase, str, bool]]:
    """The same rules for a text that is wholly there: the earliest tag counts, the longest of those."""
    found: list[tuple[Phase, str, bool]] = []
    inside = [pair.close for pair in pairs] if starts_open else []
    outside = [tag for pair in pairs for tag in pair if tag] + ["<answer>", "</answer>"]
    while text:
        phase = THINKING if inside else ANSWERING
        tags = sorted(inside or outside, key=len, reverse=True)
        match = re.search("|".join(map(re.escape, tags)), text)
        if match is None:
            found.append((phase, text, False))
            break
        if match.start():
            found.append((phase, text[: match.start()], False))
        opened = [] if inside else [pair.close for pair in pairs if pair.open == match.group()]
        found.append((THINKING if inside or opened else ANSWERING, match.group(), True))
        inside, text = opened, text[match.end() :]
    return found


own_tags = st.text(alphabet="ab<", min_size=1, max_size=4)
own_pairs = st.builds(TagPair, st.none() | own_tags, own_tags).map(lambda pair: (pair,))
tag_parts = ["<think>", "</think>", "◁think▷", "◁/think▷", "<answer>", "</answer>", "<thi", "nk>", "</", "<", ">", "ab"]
texts = st.lists(st.sampled_from(tag_parts) | st.text(alphabet="ab<", max_size=4), max_size=12).map("".join)


@settings(max_examples=500, deadline=None)
@given(texts, st.just(KNOWN_PAIRS) | own_pairs, st.booleans(), places)
@example("x###y", (TagPair("##", "###"),), False, [3])
def test_no_way_of_cutting_changes_the_segments(
    text: str, pairs: tuple[TagPair, ...], starts_open: bool, at: list[int]
) -> None:
    whole = read(text, pairs=pairs, starts_open=starts_open)
    assert [(each.phase, each.text, each.tag) for each in whole] == by_one_pattern(text, pairs, starts_open)
    assert "".join(segment.text for segment in whole) == text
    assert read(*cut(text, at), pairs=pairs, starts_open=starts_open) == whole
    assert read(*one_by_one(text), pairs=pairs, starts_open=starts_open) == whole
