"""Guards other than ours, each with its own prompt and parser, so that the paper's table can be rebuilt.

A prompt that must be a guard's own to the letter is read from the user's copy, never shipped.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from guardtrace_trainer.endpoints import Client
from guardtrace_trainer.evaluation.guards.guardreasoner import GuardReasoner
from guardtrace_trainer.evaluation.guards.judge import JudgeGuard
from guardtrace_trainer.evaluation.guards.llama_guard import LlamaGuard
from guardtrace_trainer.evaluation.guards.moderation import ModerationGuard
from guardtrace_trainer.evaluation.guards.protocol import Guard, GuardSettingsError
from guardtrace_trainer.evaluation.guards.reasoningshield import ReasoningShield

MODELS: Mapping[str, str | None] = {
    "openai-moderation": "omni-moderation-latest",
    "llm-judge": None,
    "llama-guard-4": "meta-llama/Llama-Guard-4-12B",
    "guardreasoner-vl": "yueliu1999/GuardReasoner-VL-7B",
    "reasoningshield": "ReasoningShield/ReasoningShield-1B",
}
"""The guards, and what their servers mostly call the model."""
REQUESTS: Mapping[str, Mapping[str, Any]] = {
    "openai-moderation": {},
    "llm-judge": {"temperature": 0, "max_tokens": 2000},
    "llama-guard-4": {"temperature": 0, "max_tokens": 32},
    "guardreasoner-vl": {"temperature": 0, "max_tokens": 4096},
    "reasoningshield": {"temperature": 0, "max_tokens": 1024},
}
"""Greedy, and as many tokens as their authors' own evaluations allow."""


def request_fields(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of each request: the guard's own, replaced by ``given``, without those that are None there."""
    return {key: value for key, value in {**REQUESTS[name], **given}.items() if value is not None}


def make_guard(name: str, client: Client, prompt: Path | None = None) -> Guard:
    """The guard ``name`` behind ``client``. ``prompt`` is the user's copy of its prompt, where it needs one.

    Raises:
        GuardSettingsError: there is no such guard, or the prompt is missing or of no use.
    """
    if prompt is not None and name in ("openai-moderation", "llama-guard-4"):
        raise GuardSettingsError(f"{name} takes no prompt: leave --prompt out")
    if name == "openai-moderation":
        return ModerationGuard(client)
    if name == "llm-judge":
        return JudgeGuard(client, prompt)
    if name == "llama-guard-4":
        return LlamaGuard(client)
    if name == "guardreasoner-vl":
        return GuardReasoner(client, prompt)
    if name == "reasoningshield":
        return ReasoningShield(client, prompt)
    raise GuardSettingsError(f"there is no guard {name!r}: expected one of {', '.join(MODELS)}")
