"""Whether a stream of the Messages API is one that its clients can add up, checked without the proxy's own code."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

KEYS = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "input"}
OF_BLOCK = {"text": "text_delta", "thinking": "thinking_delta", "tool_use": "input_json_delta"}


def check_stream(events: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The message as a client adds it up, calls with their ``input`` as text. Raise AssertionError where blocks don't
    follow one another, or stay open though they are no calls that were cut."""
    said = [event for event in events if event["type"] != "ping"]
    message: dict[str, Any] = {}
    open_blocks: set[int] = set()
    for event in said:
        kind, index = event["type"], event.get("index")
        assert kind in ("message_start", "error") or message, f"{kind} before message_start"
        assert "stop_reason" not in message or kind in ("message_stop", "error"), f"{kind} behind the end"
        if kind == "message_start":
            assert not message, "message_start twice"
            message = {**event["message"], "content": []}
            message.pop("stop_reason")
        elif kind == "content_block_start":
            assert index == len(message["content"]), "blocks are counted one by one"
            block = dict(event["content_block"])
            message["content"].append({**block, "input": ""} if block["type"] == "tool_use" else block)
            assert not [each for each in open_blocks if message["content"][each]["type"] != "tool_use"]
            open_blocks.add(index)
        elif kind == "content_block_delta":
            assert index in open_blocks, "a delta of a block that isn't open"
            _add(message["content"][index], event["delta"])
        elif kind == "content_block_stop":
            open_blocks.remove(index)
        elif kind == "message_delta":
            message |= event["delta"]
            message["usage"] = message["usage"] | event["usage"]
            _check_open(message, open_blocks)
        elif kind == "message_stop":
            assert "stop_reason" in message, "message_stop without message_delta"
    assert not said or said[-1]["type"] in ("message_stop", "error")
    assert [event["type"] for event in said].count("message_stop") <= 1
    return message


def _add(block: dict[str, Any], delta: dict[str, Any]) -> None:
    if delta["type"] == "signature_delta":
        assert block["type"] == "thinking"
        block["signature"] = delta["signature"]
    elif delta["type"] in KEYS:
        assert delta["type"] == OF_BLOCK[block["type"]]
        key = KEYS[delta["type"]]
        piece = delta.get(key, delta.get("partial_json"))
        block[key] += piece


def _check_open(message: dict[str, Any], open_blocks: set[int]) -> None:
    if message["stop_reason"] != "refusal":
        assert not open_blocks, "the reply ends with open blocks"
    for index, block in enumerate(message["content"]):
        if index in open_blocks:
            assert block["type"] == "tool_use", "a block that is no call stays open"
        elif block["type"] == "tool_use":
            json.loads(block["input"] or "{}")
