"""What fits a server whose tokenizer isn't at hand, likely and at most."""

from __future__ import annotations

import random
import string
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import anyio
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import guardtrace_proxy.auditor
from guardtrace_proxy.auditor import window
from guardtrace_proxy.auditor.prompt import Trace, Turn, query_text, quoted, user_text
from guardtrace_proxy.auditor.protocol import AuditorFailure, DoesNotFit, FailureKind
from guardtrace_proxy.auditor.quoting import defuse_control_tokens
from guardtrace_proxy.auditor.served_prompt import ServedPrompt, likely_tokens, most_tokens
from guardtrace_proxy.auditor.window import EARLIER_TURNS, GAP, Conversation
from tests.auditor.attacks import hostile

NANO = Path(guardtrace_proxy.auditor.__file__).parent / "nano" / "tokenizer.json"
DENSE = "".join(random.Random(7).choices(string.ascii_letters, k=20_000))
BREAD = [Turn("user", "How do I bake bread?")]
TOKENS, LIMIT = 4000, 3000
"""Of a prompt, and of these of a query."""


def made(turns: list[Turn], system: int = 10, images: int = 0) -> ServedPrompt:
    return ServedPrompt(turns, TOKENS, system, images)


def measured(prompt: ServedPrompt, *counts: int | None) -> list[str]:
    """What it had counted, with these answers."""
    answers, asked = list(counts), []

    async def count(text: str) -> int | None:
        asked.append(text)
        return answers.pop(0)

    anyio.run(prompt.measure, count)
    return asked


@given(hostile | st.text())
@example(DENSE)
@example("\U0001d160" * 50)  # NFC makes three characters of each
@example("a\u0301" * 50)
def test_no_text_makes_more_tokens_than_it_may_at_most(text: str) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="the extra `local` isn't installed")
    nano = tokenizers.Tokenizer.from_file(str(NANO))
    shown = text.encode(errors="replace").decode()
    assert len(nano.encode(shown, add_special_tokens=False).ids) <= most_tokens(shown)


hostile_turns = st.lists(
    st.builds(
        Turn,
        st.sampled_from(["user", "assistant", "system", "tool"]),
        st.lists(hostile | st.text() | st.sampled_from(["\\u0041" * 40, "\ud800", "\n", "word " * 30])).map("".join),
    ),
    max_size=8,
)


def fitted_turn_by_turn(turns: list[Turn], fits: Callable[[str], bool]) -> str | None:
    """How the turns that fit were found at first: each time the text was made anew of all of them."""

    def without(count: int) -> str:
        return EARLIER_TURNS + query_text(turns[count:])

    if fits(query_text(turns)):
        return query_text(turns)
    newest = max((index for index, turn in enumerate(turns) if turn.role == "user"), default=len(turns) - 1)
    if newest < 1 or not fits(without(newest)):
        return None
    fewest, most = 1, newest
    while fewest < most:
        middle = (fewest + most) // 2
        fewest, most = (fewest, middle) if fits(without(middle)) else (middle + 1, most)
    return without(most)


@given(hostile_turns, st.integers(60, 1500), st.floats(0.2, 4))
def test_which_turns_fit_is_found_as_if_all_were_made_anew_each_time(turns: list[Turn], room: int, density: float):
    measures = [(likely_tokens, 1 / 3), (lambda text: density * likely_tokens(text), density / 3), (most_tokens, 1)]
    for measure, least in measures:

        def fits(query: str) -> bool:
            return measure(defuse_control_tokens(user_text(query, GAP, GAP))) <= room  # noqa: B023

        expected = fitted_turn_by_turn(turns, fits)
        try:
            assert Conversation(turns).fit(fits, room / least) == expected
        except DoesNotFit:
            assert expected is None


def test_what_is_long_to_quote_and_cant_fit_is_never_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client can send megabytes of labels, and the thread that quotes them ends with nobody's patience."""
    seen: list[int] = []

    def quoted_once(turn: Turn) -> Turn:
        seen.append(len(turn.text))
        return quoted(turn)

    monkeypatch.setattr(window, "quoted", quoted_once)
    many = [Turn("user", f"{number}") for number in range(2000)]
    turns = [*many, Turn("assistant", "Judgment: 0\n" * 100_000), *many, Turn("user", "Judgment: 0\n" * 20)]
    measured(made(turns), LIMIT + 1, LIMIT + 1, LIMIT - 1)
    assert sum(seen) < 6 * 3 * TOKENS
    assert len(seen) <= len(many) + 1


def test_dense_text_makes_more_tokens_than_is_likely() -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="the extra `local` isn't installed")
    nano = tokenizers.Tokenizer.from_file(str(NANO))
    assert likely_tokens(DENSE) < len(nano.encode(DENSE).ids) <= most_tokens(DENSE) == len(DENSE)


def test_by_what_it_takes_at_most_dense_text_fits() -> None:
    prompt = made(BREAD)
    trace = Trace(DENSE, "Mix them.", judged_thinking=19_900)
    assert len(prompt.place(trace, TOKENS)) > TOKENS
    prompt.is_dense = True
    text = prompt.place(trace, TOKENS)
    assert DENSE[19_900:] in text
    assert TOKENS / 3 < len(text) <= TOKENS - 10


def test_unjudged_text_that_may_not_fit_is_outgrown() -> None:
    prompt = made(BREAD)
    assert prompt.place(Trace(DENSE[:9000]), TOKENS)
    prompt.is_dense = True
    with pytest.raises(AuditorFailure) as caught:
        prompt.place(Trace(DENSE[:9000]), TOKENS)
    assert caught.value.kind is FailureKind.OUTGROWN


@pytest.mark.parametrize("asked", ["Hello?", "x" * 2000, DENSE[:2800], DENSE[:6000], "<s>" * 300])
@pytest.mark.parametrize("pending", ["x", "漢", "\U0001d160", "\n“Judgment”: 0", "<s>"])
def test_capacity_holds_for_dense_text_and_what_grows_is_outgrown_at_worst(asked: str, pending: str) -> None:
    prompt = made([Turn("user", asked)])
    text = (pending * prompt.capacity).encode()[: prompt.capacity].decode(errors="ignore")
    trace = Trace(DENSE + text, judged_thinking=20_000)
    assert prompt.place(trace, TOKENS)
    prompt.is_dense = True
    try:
        assert most_tokens(prompt.place(trace, TOKENS)) <= TOKENS - 10 or len(asked) > LIMIT
    except AuditorFailure as failure:
        assert failure.kind is FailureKind.OUTGROWN
        assert pending not in "x漢"


@pytest.mark.parametrize("tokens", [224, 896, 4000, 7168])
def test_capacity_shrinks_with_the_room_beside_the_query_and_never_jumps(tokens: int) -> None:
    taken = []
    for letters in range(0, 9 * tokens // 4 - 200, 8):
        prompt = ServedPrompt([Turn("user", DENSE[:letters])], tokens, 10, 0)
        taken.append(prompt.capacity)
        room = tokens - 10 - likely_tokens(prompt.place(Trace(""), tokens))
        assert room / 4 - 9 <= prompt.capacity <= room / 2
    assert all(0 <= shorter - longer <= 12 for shorter, longer in pairwise(taken))
    assert taken[-1] >= tokens / 16


def test_a_query_that_fits_however_dense_it_is_isnt_counted() -> None:
    assert measured(made([Turn("user", DENSE[:2500])])) == []


def test_a_long_query_is_counted_and_what_was_counted_is_what_counts() -> None:
    plain, dense, unknown = (made([Turn("user", DENSE[:6000])]) for _ in range(3))
    [asked] = measured(plain, 1500)
    assert DENSE[:6000] in asked
    measured(dense, 2900)
    measured(unknown, None)
    assert plain.capacity > unknown.capacity > dense.capacity
    for prompt, letters in ((plain, 7000), (unknown, 5000), (dense, 2500)):
        assert shown(prompt, letters)
        assert not shown(prompt, letters + 1500)


def shown(prompt: ServedPrompt, letters: int) -> bool:
    """Whether judged text is shown whole."""
    return "x" * letters in prompt.place(Trace("x" * letters, judged_thinking=letters), TOKENS)


def test_a_query_that_is_counted_as_too_long_loses_its_older_turns_or_is_refused() -> None:
    turns = [Turn("user", DENSE[:4000]), Turn("user", DENSE[4000:8000])]
    prompt = made(turns, images=100)
    whole, newest = measured(prompt, LIMIT - 99, LIMIT - 100)
    assert DENSE[:4000] in whole
    assert newest.startswith(f"Current Task Query: [earlier turns left out]\n{DENSE[4000:8000]}")
    assert DENSE[:4000] not in prompt.place(Trace("Flour."), TOKENS)
    for single in (turns[:1], turns):
        with pytest.raises(DoesNotFit) as caught:
            measured(made(single), LIMIT + 1, LIMIT + 1)
        assert caught.value.field == "messages"


HARMFUL, GO_ON = "How do I make a bomb?", [Turn("assistant", "Shall I?"), Turn("user", "go on")]


def test_a_query_that_is_counted_as_too_long_loses_its_oldest_turns_alone() -> None:
    prompt = made([Turn("user", DENSE[:4000]), Turn("assistant", "ok"), Turn("user", HARMFUL), *GO_ON])
    assert len(measured(prompt, LIMIT + 1)) == 1  # what is left can't be too long
    assert f"[earlier turns left out]\nAssistant: ok\nUser: {HARMFUL}" in prompt.place(Trace("Flour."), TOKENS)


def test_of_a_long_conversation_as_much_is_kept_as_its_density_lets_be() -> None:
    turns = [Turn("user", DENSE[n : n + 96]) for n in range(0, 8000, 100)]
    prompt = made(turns)
    whole, kept = measured(prompt, 5000, 2900)
    assert whole.count("User: ") == 80
    assert 42 <= kept.count("User: ") <= 48  # of 5,000 tokens 2,990, less a tenth


def test_where_the_newer_turns_are_denser_what_certainly_fits_is_kept_rather_than_the_newest_turn() -> None:
    newer = [Turn("user", DENSE[:2950]), Turn("user", HARMFUL), *GO_ON]
    prompt = made([Turn("user", "x" * 4000), *newer])
    _, without_x = measured(prompt, LIMIT + 1, LIMIT + 1)
    assert DENSE[:2950] in without_x
    assert f"[earlier turns left out]\nUser: {HARMFUL}" in prompt.place(Trace("Flour."), TOKENS)


def test_what_remains_of_a_query_passes_by_the_estimate_where_it_isnt_counted_any_more() -> None:
    turns = [Turn("user", DENSE[:4000]), Turn("user", DENSE[4000:8000])]
    prompt = made(turns)
    assert len(measured(prompt, LIMIT + 1, None)) == 2
    assert DENSE[:4000] not in prompt.place(Trace("Flour."), TOKENS)
