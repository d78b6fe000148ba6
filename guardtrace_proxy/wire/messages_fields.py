"""The fields of a request to the Messages API: what becomes of each (docs/messages.md has them in one table).

Sources: the types of anthropic-python 2.14, vLLM 0.33 (``vllm/entrypoints/anthropic/protocol.py``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from guardtrace_proxy.wire import chat_fields
from guardtrace_proxy.wire.chat_fields import BROUGHT_IN, NOT_ALL, OTHER_CACHE, says_little
from guardtrace_proxy.wire.request import Allowed, check_known, refuse

UNFOLLOWED = {
    **chat_fields.UNFOLLOWED,
    "container": "what lies in it reaches the model, and the auditor wouldn't see it",
    "mcp_servers": f"of servers that the provider asks, {BROUGHT_IN}",
    "context_management": NOT_ALL,
    "fallbacks": "another model would go on with the reply",
    "input": "this API's name for it is messages",
    "instructions": "this API's name for it is system",
    "previous_response_id": OTHER_CACHE,
}
"""Request fields that are refused, and why."""
SHAPES = frozenset(
    {"model", "messages", "system", "stream", "tools", "tool_choice", "output_config", "chat_template_kwargs"}
)
FORCED = frozenset({"thinking"})
THINKING_KEYS = frozenset({"type", "budget_tokens", "display"})
PASSED = frozenset(
    """
    cache_control diagnostics inference_geo max_tokens metadata service_tier speed stop_sequences temperature top_k
    top_p user_profile_id workspace_id

    cache_salt watermarking
    """.split()
)
KNOWN = frozenset(UNFOLLOWED) | SHAPES | FORCED | PASSED
"""Every field that an operator needs no setting for."""


def check_fields(request: Mapping[str, Any], allowed: Allowed) -> None:
    """Refuse fields that the auditor couldn't follow."""
    check_known(request, KNOWN, UNFOLLOWED, allowed.fields)
    chat_fields.check_switches(request, "chat_template_kwargs", chat_fields.TEMPLATE_KWARGS)
    chat_fields.check_switches(request, "thinking", THINKING_KEYS)
    _check_tools(request.get("tools"))
    config = request.get("output_config")
    if config is None:
        return
    if not isinstance(config, dict):
        refuse("output_config", "expected an object")
    for key, value in config.items():
        if key == "effort":
            chat_fields.check_switch(value, "output_config.effort")
        elif key != "format":
            refuse(f"output_config.{key[:64]}", "not supported, since it may change what the model reads")


def hides_thinking(request: Mapping[str, Any]) -> bool:
    """Whether the client asks for a reply whose thinking isn't shown."""
    display = (request.get("thinking") or {}).get("display")
    return display not in (None, "summarized")


def texts_beside(request: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Tools and schemas as turns of their own, before the messages."""
    turns = []
    for key in ("tools", "tool_choice"):
        value = request.get(key)
        if value and (key == "tools" or not says_little(value)):
            turns.append((key, json.dumps(value, ensure_ascii=False)))
    form = (request.get("output_config") or {}).get("format")
    if form and not says_little(form):
        turns.append(("output_config.format", json.dumps(form, ensure_ascii=False)))
    return turns


def _check_tools(tools: Any) -> None:
    if tools is None:
        return
    if not isinstance(tools, list):
        refuse("tools", "expected a list")
    for position, tool in enumerate(tools):
        kind = tool.get("type", "custom") if isinstance(tool, dict) else ""
        if kind not in ("custom", None):
            refuse(
                f"tools[{position}].type",
                "only tools of the client's own (custom, or no type) are supported: a tool of the provider's, as "
                "web_search or code_execution, brings in what the auditor wouldn't see, or is described to the model "
                "in words that it wouldn't see",
            )
