"""How an auditor's context is shared out among request, trace and reply, whatever the backend."""

from __future__ import annotations

from guardtrace_proxy.auditor.protocol import AuditorSettingsError

DEFAULT_CONTEXT = 8192
"""Tokens; the published model's ``max_length``."""
LEAST_CONTEXT = 256
REPLY_SHARE = 8
"""At most one eighth of the context is kept free for the reply."""
TRACE_SHARE = 4
"""At least a quarter of what remains is kept free for the trace, whatever the query."""
JOINT_TOKENS = 16
"""Slack for tokens that form where texts meet."""


def check_context(tokens: int) -> None:
    """Raise AuditorSettingsError where a context is too small to judge anything."""
    if tokens < LEAST_CONTEXT:
        raise AuditorSettingsError(f"auditor.max_context is {tokens} tokens, at least {LEAST_CONTEXT} are needed")


def prompt_tokens(max_context: int, annotate_max_tokens: int) -> int:
    """Tokens that a prompt may have."""
    return max_context - min(annotate_max_tokens, max_context // REPLY_SHARE)


def query_tokens(prompt: int) -> int:
    """Of a prompt's tokens, those that may stand before any trace."""
    return prompt - prompt // TRACE_SHARE
