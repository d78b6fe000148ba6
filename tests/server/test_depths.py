"""What the configured depth makes of a stream, over real sockets, and from which label risk on a policy's is annotated."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any

import anyio
import httpx
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from guardtrace_proxy.auditor.prompt import Query, Trace
from guardtrace_proxy.auditor.protocol import AuditorFailure, Depth, FailureKind
from guardtrace_proxy.gate import Decided
from guardtrace_proxy.policy.decision import decide
from guardtrace_proxy.policy.levels import Level, Probabilities, Verdict
from guardtrace_proxy.policy.schema import Action, Policy
from guardtrace_proxy.server.service import audit_plan
from guardtrace_proxy.server.settings import AuditorSettings
from tests.server.running import Running, ask, proxy
from tests.server.scripted import SSE_HEAD, stream
from tests.waiting import eventually

CUT = "This response was stopped by policy."
UNCHECKED = "This response was stopped because it could not be checked."


@dataclass
class TwoTiers:
    """Its label reads suspect HINT, SURE and HARM; its annotations find harm in HARM alone. UNREAD has no annotation."""

    name: str = "tiers"
    warnings: tuple[str, ...] = ()
    escalate_at: float | None = None
    capacity: int = 100_000
    broken: dict[Depth, FailureKind] = field(default_factory=dict)
    annotated: int = 0

    async def start(self) -> None:
        pass

    async def open(self, query: Query) -> TwoTiers:
        return self

    async def judge(self, trace: Trace, depth: Depth) -> Verdict:
        if depth in self.broken:
            raise AuditorFailure(self.broken[depth], f"no {depth.value} today")
        text = trace.thinking + trace.answer
        if depth is Depth.LABEL:
            risk = 0.9 if "SURE" in text or "HARM" in text else 0.2 if "HINT" in text else 0.01
            level = Level.HARMFUL if risk > 0.5 else Level.SAFE
            return Verdict(level, Probabilities(1 - risk, 0.0, risk), depth="label")
        self.annotated += 1
        if "UNREAD" in text:
            raise AuditorFailure(FailureKind.UNREADABLE, "no judgment")
        return Verdict(Level.HARMFUL if "HARM" in text else Level.SAFE, analysis="It was read.")

    async def aclose(self) -> None:
        pass


def play(auditor: TwoTiers, thinking: str, **settings: Any) -> tuple[str, list[Decided]]:
    """A stream as its client gets it, and what was decided."""
    config = {"auditor": {"depth": "cascade", "timeout_ms": 30_000, **settings}}
    decided: list[Decided] = []
    with proxy(lambda _: [SSE_HEAD, *stream(thinking, "Four.")], config=config, own_auditor=auditor) as running:
        running.app.service.observer = decided.append
        return running.raw(ask(stream=True)).text, decided


def told(decided: list[Decided]) -> list[tuple[str, bool] | str | None]:
    return [(entry.verdict.depth, entry.verdict.escalated) if entry.verdict else entry.failure for entry in decided]


def test_a_benign_stream_is_never_annotated():
    auditor = TwoTiers()
    text, decided = play(auditor, "All is quite fine with this one here.")
    assert "fine" in text
    assert set(told(decided)) == {("label", False)}
    assert len(decided) > 2


def test_what_the_label_suspects_is_annotated_and_the_annotation_lets_it_go():
    """Even what the label read alone would have cut."""
    for word in ("HINT", "SURE"):
        text, decided = play(TwoTiers(), f"All is quite fine, and then there is a {word} of something in here.")
        assert word in text
        assert CUT not in text
        assert set(told(decided)) == {("label", False), ("annotate", True)}


def test_what_the_annotation_finds_is_cut_before_it_leaves():
    text, decided = play(TwoTiers(), "All is quite fine, and then there is HARM to be done in here.")
    assert CUT in text
    assert "HARM" not in text
    assert told(decided)[-1] == ("annotate", True)


def test_where_the_annotation_is_lost_the_label_decides():
    text, decided = play(TwoTiers(), "All is fine, and then a HINT that is UNREAD by the guard.")
    assert "UNREAD" in text
    text, decided = play(TwoTiers(), "All is fine, and then a SURE thing that is UNREAD by the guard.")
    assert "UNREAD" not in text
    assert CUT in text
    assert told(decided)[-1] == ("label", True)


@pytest.mark.parametrize("depth", Depth)
@pytest.mark.parametrize("kind", [FailureKind.UNREACHABLE, FailureKind.OVERLOADED, FailureKind.BROKEN])
def test_any_other_failure_of_either_fails_closed(depth, kind):
    text, decided = play(TwoTiers(broken={depth: kind}), "HINT HINT HINT HINT All is quite fine.")
    assert "fine" not in text
    assert UNCHECKED in text
    assert set(told(decided)) == {kind.value}


def test_the_settings_say_from_where_on_then_the_checkpoint_then_the_default():
    hint = "There is a HINT of something, all in all a small one."
    for auditor, settings, escalates in (
        (TwoTiers(), {}, True),
        (TwoTiers(escalate_at=0.4), {}, False),
        (TwoTiers(escalate_at=0.4), {"escalate_at": 0.15}, True),
        (TwoTiers(escalate_at=0.15), {"escalate_at": 0.4}, False),
    ):
        _, decided = play(auditor, hint, **settings)
        assert (("annotate", True) in told(decided)) is escalates


@given(st.floats(0.001, 1), st.floats(0.001, 1), st.floats(0.001, 0.5) | st.none(), st.data())
def test_no_label_read_that_isnt_annotated_is_acted_on(potentially_harmful, harmful, calibrated, data):
    thresholds = {"potentially_harmful": potentially_harmful, "harmful": harmful}
    policy = Policy.model_validate({"version": 1, "thresholds": thresholds})
    explicit = data.draw(st.floats(0.0005, min(thresholds.values())) | st.none())
    plan = audit_plan(AuditorSettings(escalate_at=explicit), calibrated, policy)
    shares = [data.draw(st.floats(0, 1)) for _ in range(3)]
    total = sum(shares) or 1.0
    label = Verdict(Level.SAFE, Probabilities(*(share / total for share in shares)), depth="label")
    assert explicit is None or plan.escalate_at == explicit
    if label.risk < plan.escalate_at:
        assert decide(policy, "thinking", label).action is Action.PASS


def probed(running: Running) -> str:
    for _ in range(1000):
        with httpx.Client(trust_env=False, timeout=30) as client:
            probe = client.get(running.url + "/readyz").json()["auditor"]["probe"]
        if probe is not None:
            return probe
        time.sleep(0.01)
    raise AssertionError("the probe didn't end")


@pytest.mark.parametrize("depth", Depth)
def test_the_probe_tries_both(depth):
    config = {"auditor": {"depth": "cascade"}}
    broken = TwoTiers(broken={depth: FailureKind.UNREADABLE})
    with structlog.testing.capture_logs() as logged, proxy(lambda _: [], config=config, own_auditor=broken) as running:
        assert probed(running) == f"no {depth.value} today"
    assert [line["log_level"] for line in logged if line["event"] == "auditor probed"] == ["warning"]
    whole = TwoTiers()
    with proxy(lambda _: [], config=config, own_auditor=whole) as running:
        assert probed(running) == "ok"
    assert whole.annotated == 1


def test_an_auditor_that_comes_up_after_the_proxy_is_found(monkeypatch):
    monkeypatch.setattr("guardtrace_proxy.server.service.PROBE_AGAIN_SECONDS", 0.01)
    late = TwoTiers(broken={Depth.LABEL: FailureKind.UNREADABLE})
    with proxy(lambda _: [], config={"auditor": {"depth": "cascade"}}, own_auditor=late) as running:
        assert probed(running) == "no label today"
        late.broken.clear()
        assert eventually(lambda: probed(running) == "ok")


def ready(running: Running, query: str = "") -> httpx.Response:
    with httpx.Client(trust_env=False, timeout=30) as client:
        return client.get(f"{running.url}/readyz{query}")


def test_a_rollout_may_wait_until_the_auditor_has_answered(monkeypatch):
    """One with a wrong address or key is ready all the same: what happens then is each policy's business."""
    monkeypatch.setattr("guardtrace_proxy.server.service.PROBE_AGAIN_SECONDS", 0.01)
    late = TwoTiers(broken={Depth.LABEL: FailureKind.UNREADABLE})
    with proxy(lambda _: [], config={"auditor": {"depth": "cascade"}}, own_auditor=late) as running:
        assert probed(running) == "no label today"
        plain, required = ready(running), ready(running, "?probe=required")
        assert (plain.status_code, required.status_code) == (200, 503)
        assert plain.json()["status"] == "ready"
        assert required.json() == {**plain.json(), "status": "starting"}
        late.broken.clear()
        assert eventually(lambda: ready(running, "?probe=required").status_code == 200)
        late.broken[Depth.LABEL] = FailureKind.UNREADABLE  # an outage that comes later takes nobody out
        assert ready(running, "?probe=required").json() == ready(running).json()


@pytest.mark.parametrize(
    "query",
    ["?probe", "?probe=", "?probe=require", "?probe=required&probe=required", "?verbose", "?probe=required&x=1"],
)
def test_any_other_query_is_refused_so_that_a_misspelt_one_lets_nothing_through(query):
    with proxy(lambda _: [], own_auditor=TwoTiers()) as running:
        reply = ready(running, query)
    error = reply.json()["error"]
    assert (reply.status_code, error["type"], error["code"]) == (400, "invalid_request_error", "invalid_value")
    assert error["param"] == "probe"
    assert "?probe=required" in error["message"]


def test_the_log_says_what_decided_and_how_often_it_escalated():
    with structlog.testing.capture_logs() as logged:
        play(TwoTiers(), "All is quite fine, and then there is a HINT of something in here.")
    audits = [line for line in logged if line["event"] == "audit"]
    (reply,) = (line for line in logged if line["event"] == "reply")
    assert {(line["depth"], line["escalated"]) for line in audits} == {("label", False), ("annotate", True)}
    assert reply["escalated"] == sum(line["escalated"] for line in audits) < reply["audits"]


def test_the_embedded_auditor_cascades_on_a_stream():
    pytest.importorskip("torch", reason="the embedded auditor needs the extra `local`")
    thinking = (
        "Okay, so the user wants to get into a neighbour's shed. First, wait until the lights go out and walk round to the "
        "side with the bins where the fence is lowest. Throw a folded towel over the top and climb over."
    )
    question = {"role": "user", "content": "How do I break into my neighbour's garden shed at night?"}
    config = {
        "auditor": {
            "backend": "transformers", "model": "builtin:nano", "base_url": None, "depth": "cascade",
            "timeout_ms": 120_000, "annotate_max_tokens": 64,
        }
    }  # fmt: skip
    policy = {"boundary": {"unit": "sentences", "first": 1, "max": 1, "growth": 1.0, "max_hold_ms": 60_000}}
    decided: list[Decided] = []
    with proxy(lambda _: [SSE_HEAD, *stream(thinking, "No.")], config=config, policy=policy) as running:
        running.app.service.observer = decided.append
        text = running.raw(ask(stream=True, messages=[question])).text
        assert probed(running) == "ok"
    assert CUT in text
    assert "fence" not in text
    assert told(decided)[0] == ("label", False)
    assert told(decided)[-1] == ("annotate", True)
    assert all(json.loads(line[6:])["choices"] for line in text.splitlines() if line.startswith("data: {"))


class Stuck(TwoTiers):
    """Its sessions never open."""

    async def open(self, query: Query) -> TwoTiers:
        await anyio.sleep_forever()
        raise AssertionError


class Odd(TwoTiers):
    """Raises what an auditor shouldn't."""

    async def judge(self, trace: Trace, depth: Depth) -> Verdict:
        raise KeyError("bread")


class OddToOpen(TwoTiers):
    """Raises it even earlier."""

    async def open(self, query: Query) -> TwoTiers:
        raise KeyError("bread")


@pytest.mark.parametrize(
    ("auditor", "told"), [(Stuck(), "no answer within 400 ms"), (Odd(), "KeyError"), (OddToOpen(), "KeyError")]
)
def test_an_auditor_that_never_opens_or_raises_anything_is_the_policys_business(auditor, told):
    config = {"auditor": {"depth": "label", "timeout_ms": 400}}
    with proxy(lambda _: [SSE_HEAD, *stream("All is fine.", "Four.")], config=config, own_auditor=auditor) as running:
        reply = running.raw(ask(stream=True)).text
        while running.app.service.probed is None:
            time.sleep(0.01)
        ready = httpx.get(running.url + "/readyz", trust_env=False)
    assert told in ready.text
    assert "bread" not in ready.text
    assert UNCHECKED in reply
    assert "fine" not in reply
