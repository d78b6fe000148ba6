"""An auditor at several depths: the proxy's own plan decides, and no read is made twice."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardtrace_proxy.auditor.cascade import AuditPlan
from guardtrace_proxy.auditor.guard_server import refusal
from guardtrace_proxy.auditor.prompt import Query, Trace
from guardtrace_proxy.auditor.protocol import AuditorFailure, Depth, DoesNotFit, FailureKind
from guardtrace_proxy.policy.levels import Level, Probabilities, Verdict
from guardtrace_trainer.evaluation import auditors
from guardtrace_trainer.evaluation.auditors import DEPTHS, AuditorJudge, pieces_of
from guardtrace_trainer.evaluation.data import Item
from guardtrace_trainer.evaluation.judged import EvaluationStopped, Outcome

ITEM = Item(
    id="1",
    subset="s",
    kind="unsafe",
    category="other",
    question="Q?",
    image=None,
    thinking="Hm. " * 10,
    answer="A.",
    level=1.0,
)
Said = Verdict | AuditorFailure


@dataclass
class Reader:
    """An auditor and its session: each read gives what ``says`` says of depth and trace."""

    says: Callable[[Depth, Trace], Said]
    capacity: int = 1000
    escalate_at: float | None = None
    refuses: Exception | None = None
    name: str = "reader"
    warnings: tuple[str, ...] = ()
    asked: list[tuple[Depth, Trace]] = field(default_factory=list)
    closed: int = 0

    async def start(self) -> None:
        pass

    async def open(self, query: Query) -> Reader:
        if self.refuses is not None:
            raise self.refuses
        return self

    async def judge(self, trace: Trace, depth: Depth) -> Verdict:
        self.asked.append((depth, trace))
        await anyio.lowlevel.checkpoint()
        said = self.says(depth, trace)
        if isinstance(said, Exception):
            raise said
        return said

    async def aclose(self) -> None:
        self.closed += 1


def verdict(level: float, risk: float | None, depth: str) -> Verdict:
    shares = None if risk is None else Probabilities(1 - risk, risk / 2, risk / 2)
    return Verdict(Level(level), shares, analysis="It says so.", depth=depth, milliseconds=3.0)


def failure(kind: FailureKind) -> AuditorFailure:
    return AuditorFailure(kind, f"it was {kind.value}")


def run(function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    return anyio.run(function, *args)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auditors, "FIRST_PAUSE_SECONDS", 0.001)


KINDS = [FailureKind.UNREADABLE, FailureKind.UNSURE, FailureKind.REFUSED, FailureKind.BROKEN, FailureKind.UNSEEN]
failures = st.sampled_from(KINDS).map(failure)
labels = st.floats(0, 1).map(lambda risk: verdict(1.0 if risk > 0.5 else 0.0, risk, "label")) | failures
annotations = st.sampled_from([0.0, 0.5, 1.0]).map(lambda level: verdict(level, None, "annotate")) | failures


@given(labels, annotations, st.floats(0.01, 1))
def test_each_depth_is_what_the_proxy_would_have_said(label: Said, annotation: Said, escalate_at: float) -> None:
    def says(depth: Depth, trace: Trace) -> Said:
        return label if depth is Depth.LABEL else annotation

    async def both() -> tuple[dict[str, Outcome], Reader, dict[str, Said]]:
        reader = Reader(says)
        outcomes = await AuditorJudge(reader, DEPTHS, escalate_at=escalate_at).outcomes(ITEM)
        expected: dict[str, Said] = {}
        for depth in DEPTHS:
            plan = AuditPlan(depth, 60_000, escalate_at=escalate_at)  # type: ignore[arg-type]
            try:
                expected[depth] = await plan.judge(Reader(says), Trace(ITEM.thinking, ITEM.answer))
            except AuditorFailure as problem:
                expected[depth] = problem
        return outcomes, reader, expected

    outcomes, reader, expected = run(both)
    for depth, said in expected.items():
        found = outcomes[depth]
        if isinstance(said, AuditorFailure):
            assert (found.failure, found.why, found.level) == (said.kind.value, str(said), None)
        else:
            shown = (found.level, found.depth, found.escalated, found.failure)
            assert shown == (said.level.value, said.depth, said.escalated, None)
            assert found.risk == (None if said.probabilities is None else pytest.approx(said.probabilities.risk))
    assert len(reader.asked) == len({depth for depth, _ in reader.asked})
    assert reader.closed == 1


def judge(reader: Reader, *depths: str, **settings: Any) -> dict[str, Outcome]:
    found: dict[str, Outcome] = run(lambda: AuditorJudge(reader, depths, **settings).outcomes(ITEM))
    return found


def test_the_checkpoints_own_escalate_at_counts_unless_one_is_given() -> None:
    def says(depth: Depth, trace: Trace) -> Said:
        return verdict(0.0, 0.3, "label") if depth is Depth.LABEL else verdict(1.0, None, "annotate")

    assert AuditorJudge(Reader(says), ["cascade"]).escalate_at == 0.1
    assert judge(Reader(says, escalate_at=0.4), "cascade")["cascade"].level == 0.0
    assert judge(Reader(says, escalate_at=0.4), "cascade", escalate_at=0.2)["cascade"].level == 1.0


def test_analyses_are_kept_on_request_only() -> None:
    reader = Reader(lambda depth, trace: verdict(1.0, None, "annotate"))
    assert judge(reader, "annotate")["annotate"].said is None
    assert judge(reader, "annotate", analyses=True)["annotate"].said == "It says so."


@pytest.mark.parametrize("kind", [FailureKind.OVERLOADED, FailureKind.TIMEOUT, FailureKind.UNREACHABLE])
def test_what_passes_is_asked_again(kind: FailureKind) -> None:
    said = iter([failure(kind), failure(kind), verdict(0.5, None, "annotate")])
    reader = Reader(lambda depth, trace: next(said))
    assert judge(reader, "annotate")["annotate"].level == 0.5
    assert len(reader.asked) == 3


def test_what_does_not_pass_is_not() -> None:
    reader = Reader(lambda depth, trace: failure(FailureKind.BROKEN))
    assert judge(reader, "annotate")["annotate"].failure == "broken"
    assert len(reader.asked) == 1


def test_an_auditor_that_stays_away_stops_everything() -> None:
    reader = Reader(lambda depth, trace: failure(FailureKind.UNREACHABLE))
    with pytest.raises(EvaluationStopped, match=r"it was unreachable\. See to it and run the same command again"):
        judge(reader, "annotate")
    assert (len(reader.asked), reader.closed) == (auditors.ATTEMPTS, 1)


def test_a_refused_key_stops_everything_and_a_refused_text_its_own_item() -> None:
    refused, key = (refusal(status) for status in (403, 401))
    reader = Reader(lambda depth, trace: refused)
    assert judge(reader, "annotate")["annotate"].failure == "refused"
    reader = Reader(lambda depth, trace: key)
    with pytest.raises(EvaluationStopped, match=r"HTTP status 401: look at api_key_env\. See to it"):
        judge(reader, "annotate")
    assert (len(reader.asked), reader.closed) == (1, 1)


def test_a_read_that_takes_too_long_is_a_timeout() -> None:
    class Slow(Reader):
        async def judge(self, trace: Trace, depth: Depth) -> Verdict:
            self.asked.append((depth, trace))
            await anyio.sleep(60)
            raise AssertionError

    reader = Slow(lambda depth, trace: failure(FailureKind.BROKEN))
    outcomes = judge(reader, "annotate", "cascade", timeout_ms=5)
    assert {outcome.failure for outcome in outcomes.values()} == {"timeout"}
    assert len(reader.asked) == 2 * auditors.ATTEMPTS  # one annotation, one label


def test_what_the_auditor_refuses_to_open_is_no_verdict() -> None:
    reader = Reader(lambda depth, trace: verdict(0.0, None, "annotate"), refuses=DoesNotFit("messages", "too long"))
    assert judge(reader, "annotate", "label") == {
        "annotate": Outcome(failure="does_not_fit"),
        "label": Outcome(failure="does_not_fit"),
    }
    reader.refuses = failure(FailureKind.BROKEN)
    assert judge(reader, "label")["label"].failure == "broken"


def test_a_trace_that_is_too_long_is_judged_as_it_grows() -> None:
    def says(depth: Depth, trace: Trace) -> Said:
        fresh = len(trace.thinking) - trace.judged_thinking + len(trace.answer) - trace.judged_answer
        if fresh > 16:
            return failure(FailureKind.OUTGROWN)
        return verdict(0.5 if 16 < len(trace.thinking) <= 32 else 0.0, None, "annotate")

    reader = Reader(says, capacity=16)
    outcome = judge(reader, "annotate")["annotate"]
    assert (outcome.level, outcome.pieces, outcome.milliseconds) == (0.5, 4, 12.0)


def test_what_does_not_fit_in_pieces_either_is_outgrown() -> None:
    assert judge(Reader(lambda depth, trace: failure(FailureKind.OUTGROWN)), "label")["label"].failure == "outgrown"


@given(st.text(max_size=60), st.text(max_size=60), st.integers(1, 20))
def test_pieces_cover_everything_once_within_the_capacity(thinking: str, answer: str, capacity: int) -> None:
    seen_thinking = seen_answer = ""
    for piece in pieces_of(thinking, answer, capacity):
        assert (piece.judged_thinking, piece.judged_answer) == (len(seen_thinking), len(seen_answer))
        fresh = piece.thinking[len(seen_thinking) :] + piece.answer[len(seen_answer) :]
        assert 0 < len(fresh.encode("utf-8", "surrogatepass")) <= max(capacity, 4)
        assert piece.thinking.startswith(seen_thinking)
        assert not piece.answer or piece.thinking == thinking
        seen_thinking, seen_answer = piece.thinking, piece.answer
    assert (seen_thinking, seen_answer) == (thinking, answer)
