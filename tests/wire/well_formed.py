"""Whether a stream of the Responses API is one that its clients can follow, checked without the proxy's own code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from openai.types.responses import ResponseStreamEvent
from pydantic import BaseModel

from tests.wire.response_events import CALLS, PARTS

OFFICIAL: dict[str, type[BaseModel]] = {
    get_args(model.model_fields["type"].annotation)[0]: model for model in get_args(get_args(ResponseStreamEvent)[0])
}
BY_EVENT = {events: (name, index, key) for name, (events, _, index, key) in PARTS.items()}
BY_CALL = {events: (kind, key) for kind, (events, key, _) in CALLS.items()}
TERMINAL = ("response.completed", "response.incomplete", "response.failed")


def check_stream(events: Sequence[dict[str, Any]]) -> None:
    """Raise AssertionError where numbers, ids, items or parts don't follow, or a snapshot says what its deltas didn't."""
    numbers = [event["sequence_number"] for event in events]
    assert numbers == sorted(set(numbers)), "sequence numbers go up"
    items: dict[int, dict[str, Any]] = {}
    texts: dict[tuple[Any, ...], str] = {}
    open_parts: set[tuple[Any, ...]] = set()
    done: dict[int, dict[str, Any]] = {}
    for event in events:
        family, _, what = event["type"].rpartition(".")
        index = event.get("output_index")
        if event["type"] == "response.output_item.added":
            assert index not in items
            items[index] = event["item"]
        elif event["type"] == "response.output_item.done":
            assert index in items
            assert index not in done
            assert event["item"]["id"] == items[index]["id"]
            done[index] = event["item"]
            assert not [part for part in open_parts if part[0] == index], "an item ends with open parts"
            _check_item(index, event["item"], texts)
        elif family in BY_EVENT or family in BY_CALL:
            name, key, index_name = _names(family)
            assert event["item_id"] == items[index]["id"]
            slot = (index, event.get(index_name, 0), name)
            if what == "delta":
                assert event["delta"]
                texts[slot] = texts.get(slot, "") + event["delta"]
                assert name in ("arguments", "input") or slot in open_parts
            else:
                assert event[key] == texts.get(slot, ""), "a text that was said otherwise"
        elif family.endswith("_part"):
            name = event["part"]["type"]
            slot = (index, event.get(PARTS[name][2], 0), name)
            (open_parts.add if what == "added" else open_parts.remove)(slot)
            if what == "done":
                assert event["part"][PARTS[name][3]] == texts.get(slot, "")
    kinds = [event["type"] for event in events if event["type"] in TERMINAL]
    assert kinds == [events[-1]["type"]] or events[-1]["type"] == "error"
    if not kinds:
        return
    assert all(item["type"] in CALLS for index, item in items.items() if index not in done), "an item stays open"
    last = events[-1]["response"]
    assert last["id"] == events[0]["response"]["id"]
    assert [_without_id(item) for item in last["output"]] == [_without_id(done[index]) for index in sorted(done)]
    for event in events:
        OFFICIAL[event["type"]].model_validate(event)


def _names(family: str) -> tuple[str, str, str]:
    if family in BY_EVENT:
        name, index, key = BY_EVENT[family]
        return name, key, index
    return BY_CALL[family][1], BY_CALL[family][1], ""


def _check_item(index: int, item: dict[str, Any], texts: dict[tuple[Any, ...], str]) -> None:
    for into in ("content", "summary"):
        for at, part in enumerate(item.get(into) or ()):
            assert part[PARTS[part["type"]][3]] == texts.get((index, at, part["type"]), "")
    if item["type"] in CALLS:
        key = CALLS[item["type"]][1]
        assert item[key] == texts.get((index, 0, key), "")


def _without_id(item: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in item.items() if key != "id"}
