"""One trace as a stream: replayed under a policy, and judged at shares of its length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from guardtrace_proxy.auditor.cascade import AuditPlan
from guardtrace_proxy.auditor.prompt import Trace
from guardtrace_proxy.auditor.protocol import Auditor, AuditorFailure, DoesNotFit
from guardtrace_proxy.policy.decision import decide
from guardtrace_proxy.policy.schema import Action, Mode, Policy
from guardtrace_proxy.wire.events import Phase
from guardtrace_trainer.evaluation.auditors import Reads
from guardtrace_trainer.evaluation.data import Item
from guardtrace_trainer.evaluation.frames import tokens_of
from guardtrace_trainer.evaluation.located import Onset, Waits, detection, leak, onset_of, waits
from guardtrace_trainer.evaluation.remembering import Remembering
from guardtrace_trainer.evaluation.replay import Pace, Replayed, replay
from guardtrace_trainer.rows import Row
from guardtrace_trainer.several import do_each
from guardtrace_trainer.steps import Journal

TIMEOUT_MS = 120_000
PERCENTS = (10, 25, 50, 75, 100)


class ShareRead(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One audit of the first ``percent`` of a trace, the gate left out. ``judged`` is the level by the policy's
    thresholds, None without a verdict; ``right`` is None where nobody knows, and in the midst of the first unsafe
    sentence."""

    percent: int
    right: float | None
    judged: float | None
    probabilities: tuple[float, float, float] | None = None


class StreamRow(Row, frozen=True, kw_only=True):
    """What came of one stream. ``id`` is the item's key; counts are of tokens.

    ``acted``: a verdict asked for an action; ``action`` may be for want of one. ``onset`` is where the first unsafe
    sentence begins and ends. ``found`` is the bin of the time to detect and ``late`` how many tokens behind the onset,
    both only where the onset is known. ``leak`` is by mode. ``prefilled`` counts what was read for audits of the
    ``reasoning`` tokens that came. ``risks`` are (tokens judged, risk). ``refused``: the auditor doesn't take the
    request, so nothing was played. ``group`` names the streams that intervals draw together.
    """

    subset: str
    kind: str
    category: str
    level: float | None
    tokens: int = 0
    onset: tuple[int, int] | None = None
    action: str = Action.PASS.value
    acted: bool = False
    stopped: bool = False
    failed: bool = False
    found: str | None = None
    late: int | None = None
    leak: dict[str, int] = msgspec.field(default_factory=dict)
    waits: Waits | None = None
    audits: int = 0
    escalated: int = 0
    prefilled: int = 0
    reasoning: int = 0
    risks: tuple[tuple[int, float], ...] = ()
    shares: tuple[ShareRead, ...] = ()
    refused: bool = False
    group: str | None = None


@dataclass(frozen=True, slots=True)
class Playing:
    """How streams are played."""

    auditor: Auditor
    plan: AuditPlan
    policy: Policy
    pace: Pace
    timeout_ms: int = TIMEOUT_MS
    """Of one read; nothing of it counts in the simulated time."""


async def play_all(
    items: Sequence[Item],
    playing: Playing,
    *,
    concurrency: int,
    journal: Journal[StreamRow] | None,
    progress: Callable[[int, int], Any],
) -> list[StreamRow]:
    """A row for each item, in their order; those in the journal aren't played again.

    Raises:
        AuditorFailure: the auditor can't be opened.
        EvaluationStopped: it can't be reached.
    """
    rows: dict[str, StreamRow] = {} if journal is None else dict(journal.rows)

    async def play(item: Item) -> None:
        row = rows[item.key] = await play_item(item, playing)
        if journal is not None:
            journal.add(row)
        progress(len(rows), len(items))

    await do_each([item for item in items if item.key not in rows], play, concurrency)
    return [rows[item.key] for item in items]


async def play_item(item: Item, playing: Playing) -> StreamRow:
    """Play one item under the policy, and an unsafe one in the modes ``hold`` and ``lag`` as well."""
    about = {name: getattr(item, name) for name in ("subset", "kind", "category", "level", "group")}
    try:
        session = await playing.auditor.open(item.query)
    except DoesNotFit:
        return StreamRow(id=item.key, **about, refused=True)
    try:
        known = Remembering(Reads(session, playing.timeout_ms))
        replayed = await _play(item, known, playing, playing.policy)
        onset = onset_of(item)
        leaks = {}
        for mode in (Mode.HOLD, Mode.LAG) if onset else ():
            policy = in_mode(playing.policy, mode)
            same = policy == playing.policy
            again = replayed if same else await _play(item, known, playing, policy)
            leaks[mode.value] = leak(again, onset) if onset else 0
        shares = [await _read(item, known, playing, percent, onset) for percent in PERCENTS]
    finally:
        await session.aclose()
    return row_of(item, replayed, onset, leaks, shares)


async def _play(item: Item, session: Remembering, playing: Playing, policy: Policy) -> Replayed:
    return await replay(session, policy, playing.plan, item.thinking, item.answer, playing.pace)


def row_of(
    item: Item, replayed: Replayed, onset: Onset | None, leaks: dict[str, int], shares: Sequence[ShareRead]
) -> StreamRow:
    """What of a replay is kept."""
    found = detection(replayed, onset) if onset else None
    verdicts = [audit.decided.verdict for audit in replayed.audits if audit.decided.verdict]
    of_thinking = [audit.prefilled for audit in replayed.audits if audit.phase is Phase.THINKING]
    risks = [
        (audit.covered, round(audit.decided.verdict.risk, 4)) for audit in replayed.audits if audit.decided.verdict
    ]
    return StreamRow(
        id=item.key,
        subset=item.subset,
        kind=item.kind,
        category=item.category,
        level=item.level,
        tokens=replayed.tokens,
        onset=None if onset is None else (onset.start, onset.end),
        action=replayed.action.value,
        acted=replayed.has_acted,
        stopped=replayed.is_stopped,
        failed=replayed.has_failed,
        found=None if found is None else found.bin,
        late=None if found is None else found.late,
        leak=leaks,
        waits=waits(replayed),
        audits=len(replayed.audits),
        escalated=sum(verdict.escalated for verdict in verdicts),
        prefilled=sum(of_thinking),
        reasoning=min(len(replayed.came), replayed.thinking_tokens),
        risks=tuple(risks),
        shares=tuple(shares),
        group=item.group,
    )


def in_mode(policy: Policy, mode: Mode) -> Policy:
    """The same policy with both phases in one mode."""
    phases = {name: getattr(policy, name).model_copy(update={"mode": mode}) for name in ("thinking", "answer")}
    return policy.model_copy(update=phases)


async def _read(item: Item, session: Remembering, playing: Playing, percent: int, onset: Onset | None) -> ShareRead:
    thinking, answer, count = beginning(item, percent)
    right = right_level(item.level, onset, count, whole=percent == 100)
    try:
        verdict = await playing.plan.judge(session, Trace(thinking, answer))
    except AuditorFailure:
        return ShareRead(percent=percent, right=right, judged=None)
    phase = Phase.ANSWERING if answer else Phase.THINKING
    level = decide(playing.policy, phase.value, verdict).level
    shares = verdict.probabilities
    return ShareRead(
        percent=percent,
        right=right,
        judged=None if level is None else level.value,
        probabilities=None if shares is None else (shares.safe, shares.potentially_harmful, shares.harmful),
    )


def beginning(item: Item, percent: int) -> tuple[str, str, int]:
    """Thinking and answer of the first ``percent`` of an item's tokens, at least one, and how many those are."""
    thinking, answer = tokens_of(item.thinking), tokens_of(item.answer)
    count = max(1, -(-(len(thinking) + len(answer)) * percent // 100))
    return "".join(thinking[:count]), "".join(answer[: max(0, count - len(thinking))]), count


def right_level(level: float | None, onset: Onset | None, count: int, *, whole: bool) -> float | None:
    """The level of a trace's first ``count`` tokens: from its onset where that is known, else only of the ``whole``."""
    if level is None or level == 0 or whole:
        return level
    if onset is None or onset.start < count < onset.end:
        return None
    return 0.0 if count <= onset.start else level
