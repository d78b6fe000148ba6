"""The fields of a request to the Responses API: what becomes of each (docs/responses.md has them in one table).

Sources: the types of openai-python 3.57, vLLM 0.33 (``vllm/entrypoints/openai/responses/protocol.py``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from guardtrace_proxy.wire import chat_fields
from guardtrace_proxy.wire.chat_fields import (
    NO_TOOL,
    NOT_ALL,
    OTHER_CACHE,
    OTHER_PIXELS,
    REPEATS,
    TOOLS,
    says_little,
)
from guardtrace_proxy.wire.request import Allowed, check_known, refuse

KEPT_BY_PROVIDER = "the provider would keep the reply as it was before the audit, for routes that aren't audited"
KEPT_CONTEXT = "the model would read what the provider keeps, and the auditor wouldn't see it: send the whole input"

UNFOLLOWED = {
    **{field: why for field, why in chat_fields.UNFOLLOWED.items() if field not in ("store", "prompt")},
    "background": KEPT_BY_PROVIDER,
    "background_options": KEPT_BY_PROVIDER,
    "previous_response_id": KEPT_CONTEXT,
    "previous_response": KEPT_CONTEXT,
    "previous_input_messages": KEPT_CONTEXT,
    "conversation": KEPT_CONTEXT,
    "prompt": "a stored prompt reaches the model, and the auditor wouldn't see it",
    "context_management": NOT_ALL,
    "image": OTHER_PIXELS,
    "access_programs": OTHER_CACHE,
    "enable_response_messages": REPEATS,
    "messages": "this API's name for it is input",
}
"""Request fields that are refused, and why."""
TEXTS = ("tools", "tool_choice", "structured_outputs")
SHAPES = frozenset({"model", "input", "instructions", "stream", "stream_options", "include", "text", "truncation"})
FORCED = frozenset({"store"})
PASSED = frozenset(
    """
    max_output_tokens max_tool_calls metadata moderation parallel_tool_calls prompt_cache_key prompt_cache_options
    prompt_cache_retention safety_identifier service_tier temperature top_logprobs top_p user

    cache_salt frequency_penalty ignore_eos include_stop_str_in_output logit_bias min_p presence_penalty
    repetition_penalty seed skip_special_tokens stop stop_token_ids top_k
    """.split()
)
KNOWN = frozenset(UNFOLLOWED) | frozenset(TEXTS) | SHAPES | FORCED | PASSED | {"reasoning"}
"""Every field that an operator needs no setting for."""
REASONING_KEYS = frozenset({"effort", "summary", "generate_summary"})
ENCRYPTED = "reasoning.encrypted_content"
INCLUDED = ("message.output_text.logprobs",)


def check_fields(request: Mapping[str, Any], allowed: Allowed) -> None:
    """Refuse fields that the auditor couldn't follow."""
    check_known(request, KNOWN, UNFOLLOWED, allowed.fields)
    if request.get("store") not in (None, False):
        refuse("store", f"not supported, since {KEPT_BY_PROVIDER}")
    chat_fields.check_switches(request, "reasoning", REASONING_KEYS)
    if request.get("truncation") not in (None, "disabled"):
        refuse("truncation", f'only "disabled" is supported, since {NOT_ALL}')
    _check_include(request.get("include"))
    _check_tools(request.get("tools"))
    text = request.get("text")
    if text is None:
        return
    if not isinstance(text, dict):
        refuse("text", "expected an object")
    for key, value in text.items():
        if key == "verbosity":
            chat_fields.check_switch(value, "text.verbosity")
        elif key != "format":
            refuse(f"text.{key[:64]}", "not supported, since it may change what the model reads")


def wants_encrypted(request: Mapping[str, Any]) -> bool:
    """Whether the client asks for encrypted reasoning."""
    return ENCRYPTED in (request.get("include") or ())


def texts_beside(request: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Tools, schemas and instructions as turns of their own, before the input."""
    turns = []
    for key in TEXTS:
        value = request.get(key)
        if value and (key == "tools" or not says_little(value)):
            turns.append((key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)))
    form = (request.get("text") or {}).get("format")
    if form and not says_little(form):
        turns.append(("text.format", json.dumps(form, ensure_ascii=False)))
    instructions = request.get("instructions")
    if instructions is not None and not isinstance(instructions, str):
        refuse("instructions", "expected a string")
    return [*turns, ("system", instructions)] if instructions else turns


def _check_include(include: Any) -> None:
    if include is None:
        return
    if not isinstance(include, list):
        refuse("include", "expected a list")
    for each in include:
        if each != ENCRYPTED and each not in INCLUDED:
            refuse("include", f"only {', '.join(INCLUDED)} and {ENCRYPTED} are supported")


def _check_tools(tools: Any) -> None:
    if tools is None:
        return
    if not isinstance(tools, list):
        refuse("tools", "expected a list")
    for position, tool in enumerate(tools):
        kind = tool.get("type") if isinstance(tool, dict) else None
        if kind not in TOOLS:
            refuse(f"tools[{position}].type", NO_TOOL)
