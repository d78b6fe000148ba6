"""What is promised of a reply with one choice, shared by the dialects that have frames of their own. Who may see what
is known as in chat completions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from guardtrace_proxy.gate import StartAudit
from guardtrace_proxy.policy.schema import Action, Mode, OnAuditorFailure, Policy, ReasoningField
from guardtrace_proxy.wire.events import Phase
from guardtrace_proxy.wire.reply import Reply
from guardtrace_proxy.wire.tags import ThinkingStyle
from tests.properties.alphabet import betrayed
from tests.properties.cases import draw_pieces
from tests.properties.draws import Draw
from tests.properties.history import CUT_CODES, decided, new_text
from tests.properties.sent import Case, Sent
from tests.properties.world import Log
from tests.wire.response_events import content_of

LIMIT = 1 << 20


class Drawn(Protocol):
    """A case, and the characters of its thinking and of its calls."""

    case: Case
    thinking: set[str]
    calls: set[str]


def case_of(main: Draw, policy: Policy, frames: list[bytes], whole: bytes | None, reply: Callable[[], Reply]) -> Case:
    """A reply's frames, now and then broken off, be it behind the last of them, and how time passes."""
    ending = "closed"
    if whole is not None:
        frames = [whole]
    elif main.chance(15):
        kept = len(frames) if main.chance(30) else main.number(0, len(frames) - 1)
        frames, ending = frames[:kept], main.pick("closed", "broken", "stopped")
    events = [Sent("chunk", frame) for frame in frames]
    time = main.section("time")
    return Case(
        policy=policy,
        style=ThinkingStyle("field"),
        tags=None,
        starts_open=False,
        choices=1,
        include_usage=False,
        capacity=main.pick(4096, 200, 64),
        limit=LIMIT,
        certain=main.chance(20),
        events=events,
        ending=ending,
        whole=whole,
        pieces=draw_pieces(time, events),
        audits=[
            (time.pick(0.0, 0.01, 0.2, 1.0, 3.0), time.pick(*["judge"] * 9, "fail", "SAFE", "MAYBE", "HARM"))
            for _ in range(time.number(1, 6))
        ],
        late=time.pick(0.0, 0.0, 0.03),
        ends_after=time.pick(0.0, 0.05, 0.7, 4.0) if ending == "stopped" else 0.0,
        reply=reply,
    )


def without_other_fields(policy: Policy, *, lags: bool = False) -> Policy:
    """Thinking has no other field. Unless ``lags``, each text waits for its verdict: those that run ahead have promises
    of their own."""
    settings = policy.model_dump(mode="json", exclude_none=True)
    for phase in ("thinking", "answer"):
        if settings[phase]["mode"] == "lag" and not lags:
            settings[phase]["mode"] = "hold"
    if settings["reasoning_field"] != "strip":
        settings["reasoning_field"] = "as_is"
    settings.pop("extends", None)
    return Policy.model_validate(settings)


class History:
    """What has become of each character so far."""

    def __init__(self, drawn: Drawn, log: Log) -> None:
        self.drawn, self.log = drawn, log
        self.case, self.policy = drawn.case, drawn.case.policy
        self.standing: dict[str, str] = {}
        self.asked: dict[int, StartAudit] = {}
        self.hits = False
        self.hit_calls: list[str] = []
        """Characters of calls that a verdict took out by itself."""

    def hides(self, char: str) -> bool:
        gone = self.policy.thinking.mode is Mode.WITHHOLD or self.policy.reasoning_field is ReasoningField.STRIP
        return gone and char in self.drawn.thinking

    def mode(self, phase: Phase) -> Mode:
        """What guards a phase."""
        return (self.policy.thinking if phase is Phase.THINKING else self.policy.answer).mode

    def phase(self, char: str) -> Phase:
        """Which phase a character was said in."""
        return Phase.THINKING if char in self.drawn.thinking else Phase.ANSWERING

    def enforces(self, char: str) -> bool:
        return self.mode(self.phase(char)) is Mode.HOLD

    def decided(self, phase: Phase, mark: Any) -> Action:
        """What a verdict on new text of a phase leads to."""
        return decided(self.policy, phase, mark, self.case.certain)

    def hear(self, id: int, mark: Any) -> None:
        asked = self.asked[id]
        action = None if mark is None else self.decided(asked.phase, mark)
        passes = action is not None and action.value in ("pass", "flag")
        enforced = self.mode(asked.phase) in (Mode.HOLD, Mode.LAG)
        self.hits = self.hits or (action is not None and not passes and enforced)
        if action is Action.REDACT and enforced and self.policy.decision.confirmations == 1:
            self.hit_calls += [char for char in new_text(asked) if char in self.drawn.calls]
        for char in new_text(asked):
            if action is not None:
                self.standing[char] = "pass" if passes else "hit"
            elif self.policy.on_auditor_failure is OnAuditorFailure.RELEASE and self.standing.get(char) != "hit":
                self.standing[char] = "unaudited"


def nothing_leaves_without_its_verdict(history: History) -> Iterator[str]:
    """Follows the whole log."""
    for entry in history.log.entries:
        if entry.what == "asked":
            history.asked[entry.value.id] = entry.value
        elif entry.what == "answered":
            history.hear(entry.value.id, entry.value.mark)
        elif entry.what in ("sent", "rejected"):
            contents = content_of(entry.value) if history.case.whole is None else [json.loads(entry.value)]
            for char in betrayed(contents):
                if history.hides(char):
                    yield f"hidden {char!r} left"
                if history.enforces(char) and history.standing.get(char) not in ("pass", "unaudited"):
                    yield f"{char!r} left, standing {history.standing.get(char)}"


def a_redaction_of_arguments_cuts(history: History) -> Iterator[str]:
    """Nothing can stand in their place, whatever of the call had left. Asked when the log was read."""
    said = b"".join(entry.value for entry in history.log.entries if entry.what in ("sent", "rejected"))
    by_policy = (*history.case.endings, *CUT_CODES)
    if history.hit_calls and not any(words.encode() in said for words in by_policy):
        yield f"went on behind {history.hit_calls} in a call"


def asked_for(history: History) -> bool:
    """Whether anything gave a reason to alter the reply."""
    return history.hits or failed(history.log)


def unaltered_events_keep_their_bytes_and_order(history: History) -> Iterator[str]:
    """What leaves as it came is a subsequence of what came; without hits it is everything, but for the last's mark."""
    came = [event.raw for event in history.case.events]
    blocks = [block + b"\n\n" for block in history.log.sent.split(b"\n\n")[:-1]]
    at = 0
    for block in blocks:
        if block in came[at:]:
            at = came.index(block, at) + 1
        elif block in came:
            yield f"out of order: {block!r}"
    if history.hits or may_hide(history) or asked_for(history):
        return
    marked = b'"guardtrace"' in history.log.sent
    if blocks[: len(came) - marked] != came[: len(came) - marked]:
        yield "altered for nothing"


def may_hide(history: History) -> bool:
    """Whether the policy shows less thinking than there is."""
    return any(history.hides(char) for char in history.drawn.thinking)


def failed(log: Log) -> bool:
    """Whether an audit failed."""
    return any(entry.what == "answered" and entry.value.mark is None for entry in log.entries)
