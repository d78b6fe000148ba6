"""What the spans of a request say, by OpenTelemetry's names where it has some."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from yarl import URL

from guardtrace_proxy.gate import Decided
from guardtrace_proxy.server.about import About
from guardtrace_proxy.server.settings import ModelSettings, UpstreamSettings
from guardtrace_proxy.telemetry.tracing import Value

Attributes = dict[str, Value | None]
MODEL = re.compile(r"[A-Za-z0-9._:/@+-]{1,128}", re.ASCII)
"""What is taken for a model's name: anything else in its place could be a user's text."""
OPERATIONS = {"/v1/completions": "text_completion"}
PROVIDERS = {"/v1/messages": "anthropic"}


def of_http(method: str, route: str, request_id: str) -> dict[str, Value]:
    """Of the request as it came."""
    return {"http.request.method": method, "http.route": route, "guardtrace.request_id": request_id}


def of_request(about: About) -> Attributes:
    """Of the request once it is known whose it is."""
    return {
        "guardtrace.tenant": about.tenant,
        "guardtrace.policy": about.policy,
        "guardtrace.auditor": about.auditor,
        "guardtrace.stream": about.stream,
    }


def of_generation(about: About, upstream: ModelSettings) -> tuple[str, Attributes]:
    """The name and attributes of the upstream's part."""
    operation = OPERATIONS.get(about.route, "chat")
    model = about.model if MODEL.fullmatch(about.model) else None
    attributes: Attributes = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": PROVIDERS.get(about.route, "openai"),
        "gen_ai.request.model": model,
        "gen_ai.request.choice.count": about.n if about.n > 1 else None,
        "gen_ai.request.stream": about.stream,
    }
    if isinstance(upstream, UpstreamSettings):
        url = URL(upstream.base_url)
        attributes |= {"server.address": url.host, "server.port": url.port}
    return operation if model is None else f"{operation} {model}", attributes


def of_usage(usage: Mapping[str, Any] | None) -> Attributes:
    """Of what the upstream says that it used, in any dialect's words."""
    told = usage or {}
    return {
        "gen_ai.usage.input_tokens": _count(told, "input_tokens", "prompt_tokens"),
        "gen_ai.usage.output_tokens": _count(told, "output_tokens", "completion_tokens"),
    }


def _count(usage: Mapping[str, Any], *names: str) -> int | None:
    return next((usage[name] for name in names if type(usage.get(name)) is int), None)


def of_audit(about: About, decided: Decided) -> Attributes:
    """Of one audit and what came of it."""
    verdict, decision = decided.verdict, decided.decision
    attributes: Attributes = {
        "guardtrace.choice": decided.choice,
        "guardtrace.phase": decided.phase.value,
        "guardtrace.tokens": decided.tokens,
        "guardtrace.position": decided.position,
        "guardtrace.held_ms": round(decided.held_ms, 1),
        "guardtrace.enforced": decided.enforced,
        "guardtrace.action": None if decision is None else decision.action.value,
        "gen_ai.evaluation.name": "guardtrace",
        "gen_ai.request.model": about.auditor,
    }
    if verdict is not None:
        attributes |= {
            "gen_ai.evaluation.score.label": verdict.level.label,
            "gen_ai.evaluation.score.value": round(verdict.risk, 6),
            "guardtrace.depth": verdict.depth,
            "guardtrace.escalated": verdict.escalated,
        }
    return attributes
