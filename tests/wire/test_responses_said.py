"""Which text of those before a response says again: the same one as by comparing each with all, for less work."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardtrace_proxy.wire.events import Phase, SpanKind
from guardtrace_proxy.wire.responses_places import Place, Slot
from guardtrace_proxy.wire.responses_said import Said
from tests.calls import calls_of

NAMES = st.sampled_from(["output_text", "refusal"])
SLOTS = st.tuples(st.integers(0, 2), st.sampled_from(["a", "b"]), st.integers(0, 2), NAMES)
TEXTS = st.sampled_from(["x", "y", "xy", "yx", "xyx"])
PIECE, RESPONSE = ("delta",), ("response", "output")


def place_of(slot: Slot, text: str, where: tuple[str | int, ...]) -> Place:
    return Place(where, slot, text, Phase.ANSWERING, SpanKind.TEXT)


def compared(texts: dict[Slot, str], numbers: dict[Slot, int], place: Place, number: int) -> Slot | None:
    """The answer by comparing with each: the one that is due, else at the same item, else the same part."""
    output, _, part, name = place.slot
    return min(
        (slot for slot, text in texts.items() if slot[-1] == name and text == place.text),
        key=lambda slot: (numbers[slot] != number, slot[0] != output, slot[2:-1] != (part,)),
        default=None,
    )


@settings(max_examples=500)
@given(st.lists(st.tuples(SLOTS, TEXTS) | st.lists(st.tuples(SLOTS, TEXTS), min_size=1, max_size=6), max_size=14))
def test_it_is_the_text_that_is_due_or_stands_nearest(events: list) -> None:
    said = Said()
    texts: dict[Slot, str] = {}
    numbers: dict[Slot, int] = {}

    def say(slot: Slot, text: str, base: Slot) -> None:
        begun = sum(known[-1] == base[-1] and len(known) == 4 for known in numbers)
        numbers.setdefault(slot, numbers.get(base, begun))
        texts[slot] = texts.get(slot, "") + text

    for event in events:
        if isinstance(event, tuple):
            said.piece(place_of(*event, PIECE))
            say(event[0], event[1], event[0])
            continue
        places = [place_of(*each, (*RESPONSE, at)) for at, each in enumerate(event)]
        expected = []
        for at, place in enumerate(places):
            before = sum(each.slot[-1] == place.slot[-1] for each in places[:at])
            expected.append(compared(texts, numbers, place, before))
        said.begin_event(places)
        for place, same in zip(places, expected, strict=True):
            placed = said.place(place, {}, "response.completed", place.where)
            assert (placed.twin if placed.is_new else placed.slot) == same
            if placed.is_new:
                say(placed.slot, place.text, place.slot)


def again(count: int, text: str) -> tuple[Said, list[Place]]:
    """So many texts, all of the same length, and a response that says all of them again."""
    said = Said()
    slots: list[Slot] = [(at, "", 0, "output_text") for at in range(count)]
    for at, slot in enumerate(slots):
        said.say(slot, text.format(at % 7))
    return said, [place_of(slot, text.format(at % 7), (*RESPONSE, at)) for at, slot in enumerate(slots)]


def test_a_delta_that_is_no_text_is_compared_with_nothing() -> None:
    said = Said()
    said.piece(Place(PIECE, ("other",), "5", Phase.ANSWERING, SpanKind.OTHER))
    place = place_of((0, "", 0, "output_text"), "5", (*RESPONSE, 0))
    said.begin_event([place])
    assert said.place(place, {}, "response.completed", place.where) == (place.slot, True, None)


@pytest.mark.parametrize("text", ["the same", "not {} same"])
def test_many_texts_that_are_said_again_take_work_in_proportion(text: str) -> None:
    few, many = again(100, text), again(800, text)
    assert calls_of(lambda: many[0].begin_event(many[1])) < 12 * calls_of(lambda: few[0].begin_event(few[1]))
