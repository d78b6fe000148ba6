"""What a judge is shown: the auditor's own layout, so that judges read a trace as the trained auditor will."""

from __future__ import annotations

from pathlib import Path

from guardtrace_proxy.auditor.prompt import SYSTEM_PROMPT, Turn, query_text, user_text
from guardtrace_proxy.auditor.quoting import defuse_control_tokens
from guardtrace_trainer.rows import Trace
from guardtrace_trainer.steps import StepError


def judge_text(trace: Trace) -> str:
    """The user turn: query, thinking and answer, with forged labels quoted and control tokens broken up.

    The query is the question as the thinking model was asked it.
    """
    query = query_text([Turn("user", trace.question)])
    return defuse_control_tokens(user_text(query, trace.thinking, trace.answer))


def system_prompt(path: Path | None) -> str:
    """The judges' system prompt: our own, or a file's, such as what ``guardtrace auditor fetch-prompt`` fetched.

    Raises:
        StepError: the file can't be read or is empty.
    """
    if path is None:
        return SYSTEM_PROMPT
    try:
        text = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise StepError(f"{path}: the system prompt can't be read ({error})") from error
    if not text:
        raise StepError(f"{path}: the system prompt is empty")
    return text
