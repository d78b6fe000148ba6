"""What is metadata by its exact shape, and that nothing else is."""

from __future__ import annotations

from typing import Any

import pytest

from guardtrace_proxy.wire.events import EventKind
from guardtrace_proxy.wire.strings import MAX_DEPTH
from tests.wire.replies import HEAD, dialect, read, sse, tape

SAFE = {"filtered": False, "severity": "safe"}
NONE = {"filtered": False, "detected": False}
ALL_SAFE = {"hate": SAFE, "self_harm": SAFE, "sexual": SAFE, "violence": SAFE}
PROMPT = [{"prompt_index": 0, "content_filter_results": {**ALL_SAFE, "jailbreak": NONE, "indirect_attack": NONE}}]
TIMINGS = {"prompt_n": 1, "prompt_ms": 30.9, "predicted_per_second": None}
SIGNATURE = "EvgCiFEPDWxVW9fQp2yDV6QuyQypXb/VualFew4HAUBRicjSuUcLKhDYgQvN2cLvc/OV0fpAIWP0y4KzzYk+jr3j"
ENCODED_WORDS = (
    "SW4gd29yZHMgdGhhdCBhbnlib2R5IGNhbiByZWFkIHdobyBkZWNvZGVzIHRoZW06IG5vIHNlY3JldCBhdCBhbGwsIDQgb3IgNSB0aW1lcy4="
)
COUNTS = {"prompt_tokens": 1, "details": {"cached_tokens": 0, "x": None}, "cost": 0.5, "is_byok": False}


def texts(top: dict[str, Any], choice: dict[str, Any], delta: dict[str, Any]) -> list[str]:
    """What is audited of an event, on the fast path or the slow one: whichever takes it, and always the slow one."""
    found = []
    for more in ({}, {"unknown": 0}):
        content = {**HEAD, **top, **more, "choices": [{"index": 0, "delta": delta, **choice}]}
        (event,) = dialect().feed(sse(content))
        assert event.kind is EventKind.CHUNK
        found.append(sorted(span.text for part in event.parts for span in part.spans))
    assert found[0] == found[1]
    return found[0]


@pytest.mark.parametrize(
    ("top", "text"),
    [
        ({"prompt_filter_results": PROMPT}, []),
        ({"prompt_filter_results": [{**PROMPT[0], "note": "x"}]}, ["safe"] * 4 + ["x"]),
        ({"prompt_filter_results": "x"}, ["x"]),
        ({"timings": TIMINGS}, []),
        ({"timings": {**TIMINGS, "note": "x"}}, ["x"]),
        ({"timings": {**TIMINGS, "new_n": 1}}, []),
        ({"timings": {"a key of several words": 1}}, ["a key of several words"]),
        ({"usage": {"a key of several words" * 3: 1}}, ["a key of several words" * 3]),
        ({"usage": {**COUNTS, "a few words": 1, "details": {"and more": 2}}}, ["a few words", "and more"]),
        ({"prompt_logprobs": None, "kv_transfer_params": None}, []),
        ({"prompt_logprobs": [{"7": {"decoded_token": "x"}}], "kv_transfer_params": {"host": "y"}}, ["x", "y"]),
        ({"prompt_progress": {"total": 1, "time_ms": 2}}, []),
        ({"stats": {"tokens_per_second": 51.4, "stop_reason": "eosFound"}}, []),
        ({"stats": {"tokens_per_second": 51.4, "stop_reason": "x"}}, ["x"]),
        ({"model_info": {"arch": "qwen2", "context_length": 4096}}, []),
        ({"model_info": {"arch": "two words", "context_length": 4096}}, ["two words"]),
        ({"runtime": {"name": "llama.cpp", "version": "1.3.0", "supported_formats": ["gguf"]}}, []),
        ({"runtime": {"name": "llama.cpp", "notes": ["x"]}}, ["llama.cpp", "x"]),
        ({"metadata": {"weight_version": "default"}}, []),
        ({"metadata": {"weight_version": "default", "x": "y"}}, ["default", "y"]),
        ({"usage": COUNTS}, []),
        ({"usage": {**COUNTS, "search_context_size": "medium"}}, []),
        ({"usage": {**COUNTS, "note": "more than a word is"}}, ["more than a word is"]),
        ({"usage": {**COUNTS, "notes": ["x"]}}, ["x"]),
        ({"obfuscation": "kT3" * 30}, []),
        ({"obfuscation": "two words"}, ["two words"]),
        ({"provider": "Google AI Studio", "service_tier": "default", "system_fingerprint": "fp_1"}, []),
        ({"provider": "x" * 257}, ["x" * 257]),
        ({"model": ["x"]}, ["x"]),
        ({"id": {"text": "x"}}, ["x"]),
        ({"prompt_token_ids": [1, 2], "prompt_text": "the request's own words"}, []),
        ({"prompt_token_ids": ["x"], "prompt_text": {"a": "y"}}, ["x", "y"]),
        ({"a key of several words": 1}, ["a key of several words"]),
        ({"x_groq": {"id": "req_1"}}, []),
    ],
)
def test_beside_the_choices(top: dict[str, Any], text: list[str]) -> None:
    assert texts(top, {}, {}) == text
    assert texts(top, {}, {"content": "yes"}) == sorted([*text, "yes"])


@pytest.mark.parametrize(
    ("choice", "text"),
    [
        ({"content_filter_results": {}}, []),
        ({"content_filter_results": ALL_SAFE}, []),
        ({"content_filter_results": {**ALL_SAFE, "protected_material_code": NONE, "profanity": NONE}}, []),
        ({"content_filter_results": {"hate": {"filtered": False, "severity": "x"}}}, ["x"]),
        ({"content_filter_results": {"hate": {**SAFE, "why": "x"}}}, ["safe", "x"]),
        ({"content_filter_results": {"unheard_of": SAFE}}, ["safe"]),
        # Some things that Azure says there are text: what a reply was found to repeat, and why a filter failed.
        (
            {"content_filter_results": {"protected_material_code": {**NONE, "citation": {"URL": "u", "license": "l"}}}},
            ["l", "u"],
        ),
        ({"content_filter_results": {"error": {"code": "c", "message": "not filtered"}}}, ["c", "not filtered"]),
        ({"content_filter_offsets": {"check_offset": 44, "end_offset": 198}}, []),
        ({"content_filter_offsets": {"check_offset": "x"}}, ["x"]),
        ({"finish_reason": "stop", "native_finish_reason": "STOP", "stop_reason": 7, "matched_stop": "\n\n"}, []),
        ({"stop_reason": "x" * 257}, ["x" * 257]),
        ({"finish_reason": "x" * 257}, ["x" * 257]),
        ({"matched_stop": {"text": "x"}}, ["x"]),
        ({"token_ids": ["x"]}, ["x"]),
        ({"routed_experts": "AAECAw=="}, []),
        ({"routed_experts": "in words"}, ["in words"]),
        ({"routed_experts": [[1, 2]]}, []),
        ({"logprobs": {"content": []}}, []),
        ({"logprobs": {"content": [], "note": "x"}}, ["x"]),
        ({"a key of several words": None}, ["a key of several words"]),
    ],
)
def test_beside_the_delta(choice: dict[str, Any], text: list[str]) -> None:
    assert texts({}, choice, {}) == text
    assert texts({}, choice, {"content": "yes"}) == sorted([*text, "yes"])


def detail(kind: str, **more: Any) -> dict[str, Any]:
    return {"type": f"reasoning.{kind}", "format": "anthropic-claude-v1", "index": 0, "id": "rs_1", **more}


@pytest.mark.parametrize(
    ("part", "text"),
    [
        (detail("encrypted", data=SIGNATURE), []),
        (detail("encrypted", data=SIGNATURE.rstrip("=").replace("+", "-").replace("/", "_")), []),
        (detail("text", signature=SIGNATURE), []),
        (detail("text", text="hm", signature=SIGNATURE), ["hm"]),
        (detail("text", text="hm", signature=None), ["hm"]),
        # In another place, or of another form, it could be text.
        (detail("text", data=SIGNATURE), [SIGNATURE]),
        (detail("encrypted", signature=SIGNATURE), [SIGNATURE]),
        (detail("encrypted", data="in words that anybody can read, not encrypted"), None),
        (detail("encrypted", data="short"), ["short"]),
        (detail("encrypted", data=SIGNATURE + "\n"), [SIGNATURE + "\n"]),
        (detail("encrypted", data=ENCODED_WORDS), None),
        (detail("encrypted", data="in-words-that-anybody-can-read-not-encrypted-" * 3), None),
        (detail("encrypted", data=SIGNATURE.rstrip("=") + "A"), None),
        (detail("encrypted", data={"text": SIGNATURE}), [SIGNATURE]),
        (detail("text", **{"a key of several words": 1}), ["a key of several words"]),
    ],
)
def test_encrypted_reasoning_is_no_text_if_nobody_can_read_it(part: dict[str, Any], text: list[str] | None) -> None:
    assert texts({}, {}, {"reasoning_details": [part]}) == ([part["data"]] if text is None else text)


def test_a_name_that_is_none_is_text_at_any_depth() -> None:
    assert texts({}, {}, {"vendor": {"plain": {"two words": {"format": "x"}}, "": 1}}) == ["two words"]
    deep: Any = "x"
    for _ in range(MAX_DEPTH + 10):
        deep = {"a": deep}
    (event,) = read(sse({**HEAD, "choices": [], "usage": deep}))
    assert event.kind is EventKind.MALFORMED


def test_usage_of_any_shape_is_handed_on() -> None:
    usage = {"prompt_tokens": 1, "notes": ["x"]}
    (event,) = read(sse({**HEAD, "choices": [], "usage": usage}))
    assert (event.usage, tape([event])) == (usage, "x")
