"""One run as the oracle sees it: what was sent in, what the auditor was shown and said, what the client received."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property

from guardtrace_proxy.gate import StartAudit
from guardtrace_proxy.policy.schema import Action, Mode, OnAuditorFailure, Policy, ReasoningField
from guardtrace_proxy.wire.events import Phase
from tests.properties.alphabet import PROBABILITIES, Mark, known
from tests.properties.client import Frame, frames_of, texts
from tests.properties.sent import ANSWER, Case, Part, Text
from tests.properties.world import Log

STRICTNESS = (Mode.MONITOR, Mode.LAG, Mode.HOLD)
NEVER = 1 << 60
CUT_CODES = ("content_filter", "auditor_failure")
"""Of an error that is a cut."""


@dataclass
class Cell:
    """A character that occurs once: where it was sent, and what guards it."""

    char: str
    choice: int
    event: int
    text: Text
    phase: str
    mode: Mode

    @property
    def enforced(self) -> bool:
        return self.mode in (Mode.HOLD, Mode.LAG)


@dataclass
class Hearing:
    """An audit: what it was asked about for the first time, or again, and what came of it."""

    asked: StartAudit
    at: int
    new: list[str]
    answered: int = NEVER
    mark: Mark | None = None
    action: Action | None = None
    """None where it failed, or hasn't been answered."""

    @property
    def choice(self) -> int:
        return self.asked.choice

    @property
    def passes(self) -> bool:
        return self.action in (Action.PASS, Action.FLAG)


class History:
    def __init__(self, case: Case, log: Log) -> None:
        self.case = case
        self.log = log
        self.policy = case.policy
        self.cells: dict[str, Cell] = {}
        self.by_choice: dict[int, list[Cell]] = defaultdict(list)
        self._places: dict[int, tuple[int, int]] = {}
        self.delivered_at: list[int] = []
        self.over_at = NEVER
        self.left_at = NEVER
        self.frames: list[Frame] = []
        self.hearings: list[Hearing] = []
        self.outcomes: dict[str, list[tuple[int, str]]] = defaultdict(list)
        """Of each character: when a verdict came on it as new text, and "pass", "hit" or "unaudited"."""
        self._learn_cells()
        self._read_log()
        _classify(self)

    # What was sent in

    @property
    def goes(self) -> ReasoningField:
        """Where the thinking goes."""
        withheld = self.policy.thinking.mode is Mode.WITHHOLD
        return ReasoningField.STRIP if withheld else self.policy.reasoning_field

    def delivered(self, event: int, at: int = NEVER) -> bool:
        """Whether the proxy had this event whole at that entry of the log."""
        return event < len(self.delivered_at) and self.delivered_at[event] < at

    def parts_of(self, choice: int) -> list[tuple[int, Part]]:
        """Its parts, with the numbers of their events, as far as they were delivered."""
        return [(n, part) for n, part in self.case.parts() if part.index == choice and self.delivered(n)]

    def sent_channel(self, choice: int, channel: str, phases: str = "TAta") -> str:
        """What the upstream said in one channel."""
        return "".join(
            "".join(char for char, its in zip(text.text, text.phases, strict=True) if its in phases)
            for _, part in self.parts_of(choice)
            for text in part.texts
            if channel in (text.channel, *(str(path[0]) for path in text.copies))
        )

    def mode(self, phase: str, *, inline: bool) -> Mode:
        """What guards a phase; thinking between tags has the stricter of both modes."""
        thinking, answer = self.policy.thinking.mode, self.policy.answer.mode
        if phase == ANSWER:
            return answer
        if thinking is Mode.WITHHOLD or not inline:
            return thinking
        return max(thinking, answer, key=STRICTNESS.index)

    def neighbourhood(self, part: Part) -> list[Cell]:
        """The characters that count in a part, and those next to it where it has text besides them."""
        text = "".join(each.text for each in part.meant)
        start, end = self._places[id(part)]
        reach = 0 if text and len(known(text)) == len(text) else 1
        return self.by_choice[part.index][max(0, start - reach) : end + reach]

    # What the client received

    def shown(self, choice: int, frame: Frame) -> list[tuple[str, str]]:
        """(channel, text) of a choice in one frame, without the policy's own message."""
        if frame.kind in ("message", "closing"):
            return []
        key = "message" if self.case.whole is not None else "delta"
        return [
            found
            for each in frame.choices
            if each.get("index", 0) == choice and (key == "delta" or each["finish_reason"] != "content_filter")
            for found in texts(each.get(key) or {})
        ]

    def channels(self, choice: int) -> dict[str, str]:
        """What a client has added up of one choice at the end."""
        found: dict[str, str] = defaultdict(str)
        for frame in self.frames:
            for channel, text in self.shown(choice, frame):
                found[channel] += text
        return found

    @cached_property
    def cuts(self) -> dict[int, Frame]:
        """The frames that end a choice by policy."""
        return {
            each["index"]: frame
            for frame in self.frames
            if frame.kind in ("closing", "rewritten")
            for each in frame.choices
            if each.get("finish_reason") == "content_filter"
        }

    @cached_property
    def stopped(self) -> bool:
        """Whether an error of the policy's ended the whole stream, or the proxy gave up on it."""
        by_policy = any(
            frame.kind == "error" and frame.content["error"].get("code") in CUT_CODES for frame in self.frames
        )
        return by_policy or self.given_up is not None

    @cached_property
    def given_up(self) -> Frame | None:
        """The error that says that no more may be held, and no verdict could free anything."""
        return next(
            (frame for frame in self.frames if frame.content.get("error", {}).get("message", "").startswith("More of")),
            None,
        )

    @cached_property
    def first_betrayed(self) -> dict[str, int]:
        """When a character first reached the client, in whatever form."""
        found: dict[str, int] = {}
        for frame in self.frames:
            for char in frame.betrays:
                found.setdefault(char, frame.at)
        return found

    # What the auditor said

    def standing(self, char: str, at: int = NEVER) -> str | None:
        """The last verdict on a character before an entry of the log."""
        outcomes = self.outcomes.get(char, [])
        found = bisect_left(outcomes, (at, ""))
        return outcomes[found - 1][1] if found else None

    def _learn_cells(self) -> None:
        for number, part in self.case.parts():
            start = len(self.by_choice[part.index])
            for text in part.texts:
                for char, phase in zip(text.text, text.phases, strict=True):
                    if known(char):
                        mode = self.mode(phase, inline=text.inline)
                        self.cells[char] = Cell(char, part.index, number, text, phase, mode)
                        self.by_choice[part.index].append(self.cells[char])
            meant = len(known("".join(text.text for text in part.meant)))
            self._places[id(part)] = start, start + meant

    def _read_log(self) -> None:
        borders, end = [], 0
        for event in self.case.events:
            end += len(event.raw)
            borders.append(end)
        by_id: dict[int, Hearing] = {}
        for at, entry in enumerate(self.log.entries):
            if entry.what == "fed":
                while len(self.delivered_at) < len(borders) and borders[len(self.delivered_at)] <= entry.value:
                    self.delivered_at.append(at)
            elif entry.what == "over":
                self.over_at = at
            elif entry.what == "left":
                self.left_at = at
            elif entry.what == "sent" and self.case.whole is None:
                self.frames += frames_of(entry.value, at)
            elif entry.what in ("sent", "rejected"):
                self.frames += frames_of(b"data: " + entry.value + b"\n\n", at, "message")
            elif entry.what == "asked":
                hearing = Hearing(entry.value, at, new_text(entry.value))
                by_id[entry.value.id] = hearing
                self.hearings.append(hearing)
            elif entry.what == "answered":
                self._hear(by_id[entry.value.id], at, entry.value.mark)

    def _hear(self, hearing: Hearing, at: int, mark: Mark | None) -> None:
        hearing.answered, hearing.mark = at, mark
        if mark is not None:
            hearing.action = self._decided(hearing, mark)
        for char in self._concerned(hearing):
            if mark is not None:
                self.outcomes[char].append((at, "pass" if hearing.passes else "hit"))
            elif self.policy.on_auditor_failure is OnAuditorFailure.RELEASE and self.standing(char) != "hit":
                self.outcomes[char].append((at, "unaudited"))

    def _concerned(self, hearing: Hearing) -> list[str]:
        """Whom an answer is about. In a search by beginnings a hit is about what the question added to one that passed;
        one that added nothing, about all of it."""
        if hearing.asked.tokens or hearing.mark is None or hearing.passes:
            return hearing.new
        return [char for char in hearing.new if self.standing(char) != "pass"] or hearing.new

    def _decided(self, hearing: Hearing, mark: Mark) -> Action:
        """Thinking that stands between tags, and stays there, has the more severe action of both phases."""
        phase, certain = hearing.asked.phase, self.case.certain
        action = decided(self.policy, phase, mark, certain)
        inline = [self.cells[char].text.inline for char in hearing.new] or [self.case.tags is not None]
        if phase is not Phase.THINKING or not any(inline) or self.goes is not ReasoningField.AS_IS:
            return action
        return max(action, decided(self.policy, Phase.ANSWERING, mark, certain), key=lambda each: each.severity)


def new_text(asked: StartAudit) -> list[str]:
    """What the auditor is told that no verdict covers."""
    if asked.phase is Phase.THINKING:
        return known(asked.thinking[asked.judged_thinking :])
    return known(asked.answer[asked.judged_answer :])


def decided(policy: Policy, phase: Phase, mark: Mark, certain: bool) -> Action:
    """Ruling 1."""
    settings = policy.thinking if phase is Phase.THINKING else policy.answer
    harmful = settings.actions.harmful or policy.actions.harmful
    maybe = settings.actions.potentially_harmful or policy.actions.potentially_harmful
    level, _, p_half, p_one = PROBABILITIES[mark]
    if certain:
        return {0.0: Action.PASS, 0.5: maybe, 1.0: harmful}[level.value]
    if p_one >= policy.thresholds.harmful:
        return harmful
    return maybe if p_half + p_one >= policy.thresholds.potentially_harmful else Action.PASS


def _classify(history: History) -> None:
    """Which of the frames are the upstream's own bytes, in its order, and what the others are."""
    events = history.case.events
    endings = history.case.endings
    upcoming = 0
    for frame in history.frames:
        found = next((n for n in range(upcoming, len(events)) if events[n].raw == frame.raw), None)
        if found is None and history.case.whole is not None and frame.data.encode() == history.case.whole:
            found = 0
        if found is not None and history.delivered(found, frame.at):
            frame.event, frame.kind = found, "passed"
            upcoming = found + 1
            continue
        frame.kind = _kind(frame, endings)
        if history.case.whole is not None and frame.kind != "error":
            frame.kind = "rewritten"
        behind = [history.cells[char].event for char in frame.betrays if char in history.cells]
        if behind:
            frame.rewrites = min(behind)
            frame.late = frame.rewrites < upcoming
            upcoming = max(upcoming, frame.rewrites + 1)


def _kind(frame: Frame, endings: tuple[str, str]) -> str:
    if frame.data == "[DONE]":
        return "done"
    if frame.content.get("error"):
        return "error"
    if not frame.choices:
        return "usage"
    choice = frame.choices[0]
    if len(frame.choices) > 1:
        return "rewritten"
    delta = choice.get("delta")
    said = dict(texts(delta or {}))
    if delta == {} and choice.get("finish_reason") == "content_filter":
        return "closing"
    if delta == {} and choice.get("finish_reason") is None and "guardtrace" in frame.content:
        return "note"
    if said.get("refusal") in endings or said.get("content", "").endswith(endings):
        return "message"
    return "rewritten"
