"""Logprobs of a stream against its text: whatever tokens say is on the tape before they leave."""

from __future__ import annotations

import time
from itertools import accumulate
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from guardtrace_proxy.wire.ahead import bared
from guardtrace_proxy.wire.events import Event
from guardtrace_proxy.wire.tags import ThinkingStyle
from tests.wire.replies import DONE, chunk, read, segments, shown, sse, tape

Step = tuple[str | dict[str, Any], list[str]]
"""What an event says, as its content or in other fields, and the tokens of its logprobs."""


def events_of(steps: list[Step], finish: str | None = "stop", style: ThinkingStyle | None = None) -> list[Event]:
    frames: list[dict[str, Any]] = []
    for said, tokens in steps:
        content = chunk({"content": said} if said and isinstance(said, str) else said or {})
        content["choices"][0]["logprobs"] = {"content": [{"token": token, "logprob": -0.1} for token in tokens]}
        frames.append(content)
    if finish:
        frames.append(chunk({}, finish=finish))
    return read(*map(sse, frames), DONE, style=style)


def spoken(steps: list[Step], **more: Any) -> str:
    return tape(events_of(steps, **more))


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([("Four", ["Four"]), (".", ["."])], "Four."),
        # What a parser takes out and says otherwise, as many characters long.
        ([("", ["hid", "den"]), ("spoken", []), (" on", [" on"])], "hiddenspoken on"),
        ([("", ["hid", "den"]), ("", [" to", " say"]), (" to say", [])], "hidden to say to say"),
        # Said late, and after all: twice judged, and never a second time.
        ([("", ["late"]), ("early", []), ("late", ["on"]), ("on", [])], "lateearlylateon"),
        # A tag in several tokens, blanks that are stripped, and words that a parser puts in the place of others.
        ([("hm", ["hm"]), ("", ["</", "think", ">"]), ("Four", ["\n\n", "Four"])], "hm</think>\n\nFourFour"),
        ([("a", ["a"]), ("", ["\n", "\n"]), ("bc", ["  bc"]), ("d", ["d"])], "abcd"),
        ([(" the", ["Ġthe"]), (" end", ["▁end"]), ("\n", ["Ċ"])], " the end\n"),
        ([("It", ["It"]), (" is", ["is"]), ("", ["so"]), (" ", ["."]), ("so.", [])], "It is so."),
        # Where that is first seen of tokens that others wait for, they are judged once.
        ([("", ["It"]), ("It ", ["is", "."]), ("is.", [])], "Itis.It is."),
        # More blanks than that, which those that wait for the tokens would count as their text.
        ([("", ["hidden"]), ("h i d d e n", [])], "hiddenh i d d e n"),
        ([("", [" hid"]), (" ", []), (" hid", [])], " hid hid"),
        ([("", ["\nhid"]), ("\n\n", []), ("hid", [])], "\nhid\n\nhid"),
        # Text in a field that nobody knows stands on the tape too.
        ([("", ["hid", "den"]), ({"note": "spoken"}, []), ("hidden", [])], "hiddenspokenhidden"),
        ([("", ["hid", "den"]), ({"note": "hid"}, []), ("den", [])], "hidden"),
        # A call that is said as its name and its arguments, and what stands between them.
        (
            [("", ["<tool_call>", '{"name": "', "look", '", ']), ("look", ['"at"']), ('"at"', [])],
            '{"name": "look", "at"look"at"',
        ),
        # Characters in parts.
        ([("", ["\ufffd"]), ("ä", ["\ufffd"]), ("b", ["b"])], "äb"),
        ([("", ["\\xf0\\x9f"]), ("😀", ["\\x98\\x80"]), ("日", ["日"])], "😀日"),
        ([("", ["bytes:\\xe6\\x97"]), ("日", ["bytes:\\xa5"]), ("b", ["b"])], "日b"),
        ([('"日', ['"\\xe6\\x97']), ("b", ["\\xa5", "b"])], '"日b'),
        ([("\\x90\\x90", ["\\x90", "\\x90"])], "\\x90\\x90"),
        # And whole ones, written so, that the text doesn't say.
        ([("", ["\\xe6\\xaf"]), ("fine", ["\\x92"])], "毒fine"),
        ([("", ["\\xe6\\xaf", "\\x92"]), ("好", [])], "毒好"),
        ([("", ["\\xe6\\xaf", "\\x92"])], "毒"),
    ],
)
def test_tokens_that_no_text_says_are_text_before_the_text_that_came(steps: list[Step], expected: str) -> None:
    assert spoken(steps) == expected


def test_what_is_put_in_leaves_an_inline_tag_a_tag() -> None:
    style = ThinkingStyle("inline")
    steps: list[Step] = [
        ("<think>", ["<think>"]),
        ("hm", ["hm"]),
        ("", ["hidden"]),
        ("so", ["so"]),
        ("</think>", ["</think>"]),
    ]
    events = events_of([*steps, ("Four", ["Four"])], style=style)
    assert shown(segments(events)) == "[<think>] T:hm A:hiddenso T:so [</think>] A:Four"


def test_text_beside_the_choices_is_compared_too() -> None:
    content = chunk({})
    content["choices"][0]["logprobs"] = {"content": [{"token": "hidden", "logprob": -0.1}]}
    beside = {**chunk({}), "choices": [], "note": "spoken"}
    assert tape(read(sse(content, beside))) == "hiddenspoken"


def test_nothing_waits_for_tokens_that_are_judged() -> None:
    events = events_of([("", ["hid", "den"]), ("spoken", [" then"]), (" then", [" and"])])
    assert [part.unsaid for event in events for part in event.parts][:3] == [6, 0, 4]


def test_text_that_comes_long_behind_its_tokens_takes_no_longer_the_more_there_are() -> None:
    words = [f"w{number:05}" for number in range(20_000)]
    steps: list[Step] = [("", words[at : at + 1000]) for at in range(0, len(words), 1000)]
    steps += [(word, []) for word in words]
    started = time.process_time()
    assert spoken(steps) == "".join(words)
    assert time.process_time() - started < 10


def test_many_tokens_in_one_event_that_its_text_passes_over_take_no_long() -> None:
    words = [f"{number:04}" + "c" * 64 for number in range(3000)]
    tokens = [token for word in words for token in ("x", word)]
    started = time.process_time()
    assert spoken([("".join(words), tokens)])
    assert time.process_time() - started < 10


WORDS = st.integers(0, 999).map("w{:03}".format)
FATES = st.sampled_from(["said", "said", "said", "kept", "dropped", "replaced", "blank", "spaced", "noted"])


@st.composite
def replies(draw: st.DrawFn) -> list[Step]:
    """A reply whose parser keeps text back, drops some, and says other things in the place of some."""
    words = draw(st.lists(WORDS, min_size=1, max_size=14, unique=True))
    steps: list[Step] = []
    kept = ""
    for word in words:
        fate = draw(FATES)
        if fate == "blank":
            steps.append(("" if kept else draw(st.sampled_from(["", "\n\n"])), ["\n\n"]))
        if fate == "noted":
            steps.append(({"note": "x" * draw(st.integers(1, 9))}, []))
        said = {"dropped": "", "replaced": "x" * draw(st.integers(1, 9)), "spaced": " ".join(f" {word}")}
        kept += said.get(fate, word)
        if fate == "kept":
            steps.append(("", [word]))
            continue
        cut = draw(st.integers(0, len(kept))) if draw(st.booleans()) else len(kept)
        steps.append((kept[:cut], [word]))
        kept = kept[cut:]
    return [*steps, (kept, [])] if draw(st.booleans()) else steps


@given(replies(), st.sampled_from(["stop", None]))
@example([("", ["w001"]), ("xxxx", []), ("", ["w002"]), ("yyyy", [])], "stop")
def test_whatever_tokens_say_is_on_the_tape_before_they_leave(steps: list[Step], finish: str | None) -> None:
    events = events_of(steps, finish)
    whole = tape(events)
    ends = list(accumulate(sum(len(span.text) for part in event.parts for span in part.spans) for event in events))
    for event, end, (_, tokens) in zip(events, ends, steps, strict=False):
        (part,) = event.parts
        before = whole[: end + part.unsaid] if end + part.unsaid <= len(whole) else whole
        for token in tokens:
            assert bared(token) in bared(before)
