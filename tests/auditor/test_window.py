from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardtrace_proxy.auditor.prompt import Trace, Turn
from guardtrace_proxy.auditor.protocol import AuditorFailure, DoesNotFit, FailureKind
from guardtrace_proxy.auditor.window import BYTES_A_CHARACTER, EARLIER_TURNS, GAP, Window, fit_turns

TURNS = [Turn("user", "one"), Turn("assistant", "two"), Turn("user", "three"), Turn("tool", "four")]


def shorter_than(length: int):  # type: ignore[no-untyped-def]
    return lambda text: len(text) <= length


def test_a_conversation_that_fits_is_whole() -> None:
    assert fit_turns(TURNS, shorter_than(100)) == "User: one\nAssistant: two\nUser: three\nTool: four"


def test_the_oldest_turns_go_first_with_a_mark() -> None:
    kept = EARLIER_TURNS + "Assistant: two\nUser: three\nTool: four"
    assert fit_turns([Turn("user", "one" * 30), *TURNS[1:]], shorter_than(len(kept))) == kept


def test_no_more_turns_go_than_must() -> None:
    turns = [Turn("user", str(number)) for number in range(40)]
    for length in range(60, 400, 7):
        text = fit_turns(turns, shorter_than(length))
        left = 40 - text.count("User: ")
        assert len(text) <= length
        assert left == 0 or len(EARLIER_TURNS + "\n".join(f"User: {n}" for n in range(left - 1, 40))) > length


@pytest.mark.parametrize("turns", [[], [Turn("user", "x" * 50)], [Turn("system", "x" * 50)], TURNS])
def test_the_newest_user_turn_and_what_follows_must_fit(turns: list[Turn]) -> None:
    with pytest.raises(DoesNotFit) as caught:
        fit_turns(turns, lambda text: not text if turns else False)
    assert caught.value.field == "messages"


def test_three_characters_are_two_bytes_at_least_in_any_normal_form() -> None:
    """Each character of a text in NFC has come of as many as it is in NFD, at most."""
    whole = (character for code in range(0x110000) if unicodedata.normalize("NFC", character := chr(code)) == character)
    ratios = {
        len(character.encode("utf-8", "surrogatepass")) / len(unicodedata.normalize("NFD", character))
        for character in whole
    }
    assert min(ratios) == BYTES_A_CHARACTER


def place(window: Window, trace: Trace, room: int) -> tuple[str, str]:
    return window.place(trace, lambda t, a: (t, a) if len(t) + len(a) <= room else None)


def test_a_trace_that_fits_is_whole() -> None:
    assert place(Window(), Trace("thinking", "answer", 8, 6), 14) == ("thinking", "answer")


def test_judged_thinking_goes_before_judged_answer() -> None:
    thinking, answer = place(Window(), Trace("a" * 100, "b" * 100, 100, 100), 150)
    assert thinking == GAP + "a" * 25
    assert answer == "b" * 100
    thinking, answer = place(Window(), Trace("a" * 100, "b" * 100, 100, 100), 60)
    assert thinking == GAP
    assert answer == GAP + "b" * 50


def test_the_cut_stays_while_the_trace_grows() -> None:
    window, cuts = Window(), []
    for length in range(10, 1000, 10):
        thinking, _ = place(window, Trace("x" * length, "", length - 10), 104)
        cuts.append(length - len(thinking.removeprefix(GAP)))
    assert len(set(cuts)) < 25  # slides by halves: once per fifty characters or so
    assert cuts == sorted(cuts)


def test_unjudged_text_is_never_left_out() -> None:
    with pytest.raises(AuditorFailure) as caught:
        place(Window(), Trace("x" * 100, "y" * 100, 50, 0), 149)
    assert caught.value.kind is FailureKind.OUTGROWN


@given(
    st.lists(st.tuples(st.integers(0, 80), st.integers(0, 80), st.booleans()), max_size=12),
    st.integers(40, 200),
)
def test_whatever_comes_pending_text_stands_whole_at_the_end(steps: list[tuple[int, int, bool]], room: int) -> None:
    window, thinking, answer = Window(), "", ""
    judged = (0, 0)
    for more_thinking, more_answer, redacted in steps:
        thinking += "t" * more_thinking
        answer += "a" * more_answer
        if redacted:  # a redaction makes what was judged shorter
            thinking, judged = thinking[judged[0] // 2 :], (judged[0] - judged[0] // 2, judged[1])
        pending = thinking[judged[0] :], answer[judged[1] :]
        try:
            shown = place(window, Trace(thinking, answer, *judged), room)
        except AuditorFailure:
            assert len(pending[0]) + len(pending[1]) + 2 * len(GAP) > room
            return
        for part, rest in zip(shown, pending, strict=True):
            assert part.endswith(rest)
        judged = len(thinking), len(answer)
