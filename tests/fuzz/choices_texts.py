"""Where text may stand in a reply that comes in choices, found without the reader's own code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

LABELS = ("type", "id", "index", "format")
NAMES = ("id", "object", "model", "system_fingerprint", "service_tier", "provider")
CHOICE_NAMES = ("finish_reason", "native_finish_reason", "stop_reason", "matched_stop")
ABOUT_THE_PROMPT = "prompt_text"
WORDS = re.compile(
    r"safe|low|medium|high|userStopped|modelUnloaded|failed|eosFound|stopStringFound|toolCalls|"
    r"maxPredictedTokensReached|contextLengthReached"
)
WORD = re.compile(r"[!-~]{0,64}")
SHORT = re.compile(r".{0,16}", re.DOTALL)
NAME = re.compile(r".{0,256}", re.DOTALL)
PADDING = re.compile(r"[A-Za-z0-9]{0,4096}\n?")
BASE64 = re.compile(r"[A-Za-z0-9+/_-]*={0,2}\n?")
METADATA = {
    **dict.fromkeys(NAMES, NAME),
    "obfuscation": PADDING,
    "usage": SHORT,
    "prompt_filter_results": WORDS,
    "stats": re.compile(f"{WORDS.pattern}|{WORD.pattern}"),
    "model_info": WORD,
    "runtime": WORD,
    "metadata": WORD,
}
CHOICE_METADATA = {
    **dict.fromkeys(CHOICE_NAMES, NAME),
    "content_filter_results": WORDS,
    "routed_experts": BASE64,
    "logprobs": NAME,
}
PLAIN_KEY = re.compile(r"[A-Za-z0-9_.:$-]{0,64}")


class Within(str):
    """What stands within a text: tokens, strings of a call's input."""


def texts_of(event: dict[str, Any], body_key: str) -> Iterator[str]:
    """``body_key`` leads to what a choice says; "" where it says it beside its other fields."""
    for key, value in event.items():
        if key == "choices":
            for choice in value or []:
                yield from texts_of_choice(choice, body_key)
        elif key != ABOUT_THE_PROMPT:
            yield from texts(value, METADATA.get(key))


def texts_of_choice(choice: dict[str, Any], body_key: str) -> Iterator[str]:
    for key, value in choice.items():
        if key != body_key or not isinstance(value, dict):
            yield from texts(value, CHOICE_METADATA.get(key))
            continue
        for name, inner in value.items():
            if not PLAIN_KEY.fullmatch(name):
                yield name
            yield from texts(inner, SHORT if name == "role" else None)


def texts(value: Any, metadata: re.Pattern[str] | None) -> Iterator[str]:
    """Strings below a value but those that such metadata may hold, and those that only say what a part is."""
    if isinstance(value, str):
        if value and not (metadata and metadata.fullmatch(value)):
            yield value
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner, metadata)
    elif isinstance(value, dict):
        encrypted = {"reasoning.encrypted": "data", "reasoning.text": "signature"}.get(str(value.get("type")))
        for key, inner in value.items():
            if metadata in (None, SHORT) and not PLAIN_KEY.fullmatch(key):
                yield key
            is_label = key in LABELS and isinstance(inner, str) and WORD.fullmatch(inner)
            is_secret = key == encrypted and isinstance(inner, str) and len(inner) >= 64 and BASE64.fullmatch(inner)
            if not (is_label or is_secret):
                yield from texts(inner, metadata)
