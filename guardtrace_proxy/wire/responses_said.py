"""What a response has said, and whether an event says it again: then it shares the fate of what was said.

Where a client reads the same as before, nothing is judged again. Texts that were judged could be put together anew,
though, so they are said again in the order in which they were begun, all of them, once in each kind of event; a string
that nobody knows only at the place where it was said last. Whatever comes otherwise is judged as it comes, and shares
the earlier fate as well.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from guardtrace_proxy.wire.events import SpanKind
from guardtrace_proxy.wire.responses_places import Place, Slot
from guardtrace_proxy.wire.strings import Path

RECENT = 16
"""How many deltas back the tokens of a delta's logprobs may reach."""
MAX_KEPT_BYTES = 33_554_432
"""Of memory, for all texts of one reply: hundreds of thousands of tokens, each in an event of its own."""
TEXT_BYTES = 350
"""Of memory that a text takes beside its pieces."""
OUT_OF_ORDER = -1
"""In the place of a count: no text is due any more."""


class Placed(NamedTuple):
    """Which text a string is, and whether it is to be judged. ``twin`` said the same before: where that left otherwise
    than it came, this does, too."""

    slot: Slot
    is_new: bool
    twin: Slot | None = None


class _Text:
    """A text in its pieces. ``number`` counts those of its name in the order in which they were begun."""

    __slots__ = ("length", "number", "pieces")

    def __init__(self, number: int) -> None:
        self.number = number
        self.pieces: list[str] = []
        self.length = 0

    def add(self, text: str) -> None:
        self.pieces.append(text)
        self.length += len(text)

    def is_just(self, text: str) -> bool:
        """Whether it says this and no more; cheap where it can't, however long it is."""
        return self.length == len(text) and "".join(self.pieces) == text


class Said:
    """All texts of one reply."""

    def __init__(self) -> None:
        self.kept_bytes = 0
        """Of memory that the texts take, in as many pieces as they came."""
        self._texts: dict[Slot, _Text] = {}
        self._begun: Counter[Any] = Counter()
        """By name: how many texts were begun."""
        self._again: Counter[tuple[str, Any, Any]] = Counter()
        """By the kind of event, where in it and name: how many texts it has said again."""
        self._others: dict[str, Slot] = {}
        """Strings that nobody knows."""
        self._at_places: dict[Path, str] = {}
        """Of these what was said last, by place in an item or a response."""
        self._slots = 0
        self._whole: dict[Path, Slot] = {}
        """Texts of the response at hand, by their places: what said the same."""
        self._anew: set[Any] = set()
        """Names of those that it puts together anew."""

    def say(self, slot: Slot, text: str) -> None:
        """A text, or a piece of one, came."""
        known = self._texts.get(slot)
        if known is None:
            known = self._texts[slot] = _Text(self._begun[slot[-1]])
            self._begun[slot[-1]] += 1
            self.kept_bytes += TEXT_BYTES
        known.add(text)
        self.kept_bytes += sys.getsizeof(text)

    @property
    def is_full(self) -> bool:
        """Whether no more may be kept."""
        return self.kept_bytes >= MAX_KEPT_BYTES

    def say_alone(self) -> Slot:
        """A slot for what nothing will say again."""
        self._slots += 1
        return (self._slots, "other")

    def recent(self, slot: Slot) -> str:
        """The end of a text."""
        text = self._texts.get(slot)
        return "" if text is None else "".join(text.pieces[-RECENT:])

    def begin_event(self, places: Sequence[Place]) -> None:
        """An event with these texts comes. A response says all of its own again, or is judged as it stands."""
        self._whole.clear()
        self._anew.clear()
        said: Counter[Any] = Counter()
        places = [
            each for each in places if each.where[0] == "response" and each.kind is not SpanKind.OTHER and each.text
        ]
        firsts = self._firsts_like(places) if places else {}
        for place in places:
            name = place.slot[-1]
            slot = _same_somewhere(firsts, place, said[name])
            if slot is not None:
                self._whole[place.where] = slot
            if slot is None or self._texts[slot].number != said[name]:
                self._anew.add(name)
            said[name] += 1

    def piece(self, place: Place) -> Placed:
        """What a delta is."""
        if place.text:
            self.say(place.slot, place.text)
        return Placed(place.slot, bool(place.text))

    def place(self, place: Place, event: Mapping[str, Any], type: str, at: Path) -> Placed:
        """What a string is that isn't a delta. ``at`` is its place in the event, and no other's."""
        if not place.text:
            return Placed(place.slot, False)
        if place.kind is SpanKind.OTHER:
            return self._place_other(place.text, _in_response(at, event))
        slot, name = place.slot, place.slot[-1]
        kind = (type, place.where[0], name)
        if place.where[0] == "response":
            same, is_due = self._whole.get(place.where), name not in self._anew
        else:
            same = slot if slot in self._texts and self._texts[slot].is_just(place.text) else None
            is_due = same is not None and self._texts[same].number == self._again[kind]
        if same is not None and not is_due:
            self._again[kind] = OUT_OF_ORDER
        if same is None or not is_due:
            return Placed(self._say_anew(slot, place.text, kind), True, same)
        self._again[kind] += 1
        return Placed(same, False)

    def _say_anew(self, slot: Slot, text: str, kind: tuple[str, Any, Any]) -> Slot:
        """A text of its own, or another version of one."""
        if slot in self._texts:
            self._slots += 1
            number, slot = self._texts[slot].number, (*slot[:-1], self._slots, slot[-1])
            self._texts[slot] = _Text(number)
            self.kept_bytes += TEXT_BYTES
        self.say(slot, text)
        self._again[kind] += self._texts[slot].number == self._again[kind]
        return slot

    def _place_other(self, text: str, at: Path | None) -> Placed:
        if at is None:
            return Placed(self._keep_other(text), True)
        twin = self._others.get(text)
        if twin is not None and self._at_places.get(at) == text:
            return Placed(twin, False)
        self._at_places[at] = text
        return Placed(self._keep_other(text), True, twin)

    def _keep_other(self, text: str) -> Slot:
        self.kept_bytes += TEXT_BYTES + sys.getsizeof(text)
        slot = self._others[text] = self.say_alone()
        return slot

    def _firsts_like(self, places: Sequence[Place]) -> dict[tuple[Any, ...], Slot]:
        """The texts that say the same as one of these: of all that do, the first at each item and part of it, at each
        item, at each part of whichever item, and anywhere; and the first of each number."""
        lengths = {(place.slot[-1], len(place.text)) for place in places}
        firsts: dict[tuple[Any, ...], Slot] = {}
        for slot, said in self._texts.items():
            if (slot[-1], said.length) not in lengths:
                continue
            output, _, *part, name = slot
            text = "".join(said.pieces)
            for at in (("number", said.number), (output, *part), (output,), ("part", *part), ()):
                firsts.setdefault((name, text, at), slot)
        return firsts


def _same_somewhere(firsts: Mapping[tuple[Any, ...], Slot], place: Place, number: int) -> Slot | None:
    """The text that says the same as one of a response, whose items some servers give another id in their last event:
    the one that is due, or stands at the same place, if one does. Another may have left otherwise."""
    output, _, part, name = place.slot
    at = (("number", number), (output, part), (output,), ("part", part), ())
    found = (firsts.get((name, place.text, each)) for each in at)
    return next((slot for slot in found if slot is not None), None)


def _in_response(at: Path, event: Mapping[str, Any]) -> Path | None:
    """A place in the response, whether the event has all of that, an item or a part; None for one beside them."""
    if at[0] == "response":
        return ("item", *at[2:]) if at[1:2] == ("output",) and len(at) > 2 else at
    if at[0] == "item":
        return ("item", _index(event, "output_index"), *at[1:])
    if at[0] == "part":
        key = "summary" if "summary_index" in event else "content"
        return ("item", _index(event, "output_index"), key, _index(event, f"{key}_index"), *at[1:])
    return None


def _index(event: Mapping[str, Any], key: str) -> int:
    index = event.get(key)
    return index if isinstance(index, int) else 0
