"""From a decision to its line in the audit log."""

from __future__ import annotations

from guardtrace_proxy import __version__
from guardtrace_proxy.gate import Decided, StartAudit
from guardtrace_proxy.policy.levels import Verdict
from guardtrace_proxy.records import lines
from guardtrace_proxy.records.evidence import shown
from guardtrace_proxy.server.about import About
from guardtrace_proxy.wire.events import Phase
from guardtrace_proxy.wire.request import Turns


def audit_line(
    about: About, number: int, asked: StartAudit, decided: Decided, audit_ms: float, evidence: str
) -> lines.DecisionLine:
    """``number`` counts the reply's decisions from 1; ``audit_ms`` is what the audit took, its waiting included."""
    verdict, decision = decided.verdict, decided.decision
    level = None if decision is None else decision.level
    stand_in = None if verdict is None else verdict.auditor
    is_thinking = asked.phase is Phase.THINKING
    return lines.DecisionLine(
        time=lines.now(),
        request_id=about.request_id,
        trace_id=about.trace_id,
        tenant=about.tenant,
        key=about.key,
        upstream=about.upstream,
        route=about.route,
        stream=about.stream,
        images=about.images,
        policy=about.policy,
        policy_sha256=about.policy_sha256,
        auditor=about.auditor if stand_in is None else stand_in,
        checkpoint=about.checkpoint if stand_in is None else None,
        version=__version__,
        audit=number,
        choice=decided.choice,
        phase=decided.phase.value,
        tokens=decided.tokens,
        position=decided.position,
        begins=asked.judged_thinking if is_thinking else asked.judged_answer,
        ends=len(asked.thinking if is_thinking else asked.answer),
        judgment=None if verdict is None else verdict.level.value,
        level=None if level is None else level.value,
        probabilities=_probabilities(verdict),
        depth=None if verdict is None else verdict.depth,
        escalated=verdict is not None and verdict.escalated,
        action=None if decision is None else decision.action.value,
        enforced=decided.enforced,
        failure=decided.failure,
        audit_ms=round(audit_ms, 1),
        auditor_ms=None if verdict is None else round(verdict.milliseconds, 1),
        held_ms=round(decided.held_ms, 1),
        evidence=_evidence(about, asked, decided, evidence),
    )


def _probabilities(verdict: Verdict | None) -> lines.Probabilities | None:
    found = None if verdict is None else verdict.probabilities
    if found is None:
        return None
    return lines.Probabilities(*(round(each, 6) for each in (found.safe, found.potentially_harmful, found.harmful)))


def _evidence(about: About, asked: StartAudit, decided: Decided, wanted: str) -> lines.Evidence | None:
    """Of what was found harmful, or couldn't be judged; never of what is safe."""
    verdict = decided.verdict
    is_safe = decided.failure is None and (verdict is None or not verdict.level.value)
    is_safe = is_safe and (decided.decision is None or not decided.decision.level)
    if wanted == "none" or is_safe:
        return None
    redact = wanted == "redacted"
    analysis = None if verdict is None else verdict.analysis
    return lines.Evidence(
        query=shown(_written(about.turns(asked.choice)), redact=redact),
        thinking=shown(asked.thinking[asked.judged_thinking :], redact=redact),
        answer=shown(asked.answer[asked.judged_answer :], redact=redact),
        analysis=None if analysis is None else shown(analysis, redact=redact),
    )


def _written(turns: Turns) -> str:
    return "\n".join(f"{role}: {text}" for role, text in turns)
