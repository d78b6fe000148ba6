"""The switches by which a request turns thinking off, in the words of the servers that know them.

Sources: the protocols of vLLM 0.33 and SGLang, OpenRouter's, DeepSeek's and Anthropic's references, the chat templates
of Qwen3, DeepSeek V3.1, GLM-4.5 and Seed-OSS.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ALONE = ("enable_thinking", "reasoning_effort", "thinking_budget", "thinking_token_budget")
INSIDE = {
    "thinking": ("type", "budget_tokens"),
    "reasoning": ("enabled", "effort", "max_tokens"),
    "output_config": ("effort",),
    "chat_template_kwargs": ("enable_thinking", "thinking", "reasoning_effort", "thinking_budget"),
}
"""By field: the switches in its object."""
OFF = frozenset({"", "0", "disable", "disabled", "false", "no", "none", "off"})


def turned_off_by(request: Mapping[str, Any]) -> str | None:
    """The path of the first switch that turns thinking off; None where none does."""
    for field in ALONE:
        if field in request and request[field] is not None and _is_off(request[field]):
            return field
    for field, keys in INSIDE.items():
        switches = request.get(field)
        if not isinstance(switches, dict):
            continue
        for key in keys:
            # A template that asks whether thinking is wanted takes null for no; elsewhere it is as if it weren't there.
            asks = field == "chat_template_kwargs" and key in ("enable_thinking", "thinking")
            counts = key in switches and (switches[key] is not None or asks)
            if counts and _is_off(switches[key]):
                return f"{field}.{key}"
    return None


def _is_off(value: Any) -> bool:
    return value.lower() in OFF if isinstance(value, str) else not value
