"""openai-python on the Responses API: ``create``, or the helper ``stream()``, as the argument says."""

from __future__ import annotations

import sys
from typing import Any

from lines import KEY, MODEL, PROMPT, Seen, serve
from openai import OpenAI

ASK: dict[str, Any] = {"model": MODEL, "input": PROMPT}


def read(event: Any, seen: Seen) -> None:
    seen.got(event)
    if event.type in ("response.reasoning_text.delta", "response.reasoning_summary_text.delta"):
        seen.thinking += event.delta
    elif event.type == "response.output_text.delta":
        seen.text += event.delta
    elif event.type in ("response.completed", "response.incomplete"):
        end(event.response, seen)


def end(response: Any, seen: Seen) -> None:
    details = response.incomplete_details
    seen.finish = (details and details.reason) or response.status


def read_whole(response: Any, seen: Seen) -> None:
    seen.got(response)
    seen.text = response.output_text
    for item in response.output:
        if item.type == "reasoning":
            seen.thinking += "".join(part.text for part in item.content or item.summary)
    end(response, seen)


def stream(url: str, seen: Seen) -> None:
    with OpenAI(base_url=url, api_key=KEY) as client:
        for event in client.responses.create(**ASK, stream=True):
            read(event, seen)


def whole(url: str, seen: Seen) -> None:
    with OpenAI(base_url=url, api_key=KEY) as client:
        read_whole(client.responses.create(**ASK), seen)


def leave(url: str, seen: Seen) -> None:
    events = OpenAI(base_url=url, api_key=KEY).responses.create(**ASK, stream=True)
    for event in events:
        read(event, seen)
        if seen.thinking:
            break
    events.close()
    seen.left_by = "`stream.close()`"


def stream_helper(url: str, seen: Seen) -> None:
    with OpenAI(base_url=url, api_key=KEY) as client, client.responses.stream(**ASK) as events:
        for event in events:
            read(event, seen)
        # It knows of no other end: behind response.incomplete it raises a RuntimeError.
        if seen.finish == "completed":
            seen.got(events.get_final_response())


def whole_helper(url: str, seen: Seen) -> None:
    with OpenAI(base_url=url, api_key=KEY) as client:
        read_whole(client.responses.parse(**ASK), seen)


def leave_helper(url: str, seen: Seen) -> None:
    with OpenAI(base_url=url, api_key=KEY).responses.stream(**ASK) as events:
        for event in events:
            read(event, seen)
            if seen.thinking:
                break
    seen.left_by = "the end of `with`"


CASES = {"sync": (stream, whole, leave), "helper": (stream_helper, whole_helper, leave_helper)}
serve("openai", *CASES[sys.argv[1]])
