"""What an upstream sends, with what is true about it: the oracle's ground."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from guardtrace_proxy.policy.schema import Policy
from guardtrace_proxy.wire.reply import Reply
from guardtrace_proxy.wire.tags import ThinkingStyle

Path = tuple[str | int, ...]

THINKING = "T"
ANSWER = "A"
TAG = "t"
"""A thinking tag."""
OTHER_TAG = "a"
"""A tag that goes with the answer: GLM's, and a closing one that nothing opened."""


@dataclass
class Text:
    """One string of a delta. ``phases`` says of each character what it is; ``copies`` repeat the string."""

    path: Path
    text: str
    phases: str
    copies: tuple[Path, ...] = ()
    inline: bool = False
    """Whether thinking stands between tags."""

    @property
    def channel(self) -> str:
        """Where a client adds it up."""
        return channel_of(self.path)


def channel_of(path: Path) -> str:
    return f"call {path[1]} {path[-1]}" if path[0] == "tool_calls" else str(path[0])


@dataclass
class Part:
    """What one event says of one choice."""

    index: int
    texts: list[Text] = field(default_factory=list)
    finish: str | None = None
    role: bool = False
    labels: dict[str, Any] = field(default_factory=dict)
    """Of a tool call: index, id, type."""
    token_ids: list[int] | None = None
    logprobs: Any = None
    empty: dict[str, Any] = field(default_factory=dict)
    """Fields of the delta that hold no text: ``"content": ""``."""
    ahead: Part | None = None
    """The part whose tokens these are, where they come before their text."""

    @property
    def meant(self) -> list[Text]:
        """The texts that it carries, or the tokens of."""
        return self.ahead.texts if self.ahead is not None else self.texts

    @property
    def tokens(self) -> int:
        """Ruling 16."""
        if not self.texts or self.ahead is not None:
            return 0
        return len(self.token_ids or []) or sum(-(-len(each.text.encode()) // 4) for each in self.texts)


@dataclass
class Sent:
    """One event. ``kind``: chunk, done, error, malformed, or comment, which nobody passes on."""

    kind: str
    raw: bytes
    parts: list[Part] = field(default_factory=list)
    usage: dict[str, Any] | None = None


@dataclass
class Case:
    """One reply, its policy, and how time passes."""

    policy: Policy
    style: ThinkingStyle
    tags: tuple[str | None, str] | None
    """What opens and closes thinking in the content."""
    starts_open: bool
    choices: int
    include_usage: bool
    capacity: int
    limit: int
    certain: bool
    """Whether verdicts come without probabilities."""
    events: list[Sent]
    ending: str
    """How the connection ends behind the last event: "closed" or "broken"; or "stopped", by the proxy."""
    whole: bytes | None
    """The reply, where it isn't streamed; ``events`` then has one entry."""
    pieces: list[tuple[float, int]]
    """How the stream's bytes come: seconds since the piece before, and how many."""
    audits: list[tuple[float, str]]
    """How long audits take and what becomes of them, over and over: "judge", "fail", or a mark's name."""
    late: float
    """How late timers are."""
    ends_after: float = 0.0
    """Seconds from the last piece to the end."""
    reply: Callable[[], Reply] | None = None
    """A reader and writer of another dialect than chat completions."""

    @property
    def endings(self) -> tuple[str, str]:
        """What a cut may say: that a verdict asked for it, or that the auditor failed."""
        return self.policy.messages.cut, self.policy.messages.auditor_failure

    @property
    def stream(self) -> bytes:
        return b"".join(event.raw for event in self.events)

    def parts(self) -> Iterator[tuple[int, Part]]:
        """All parts with the number of their event."""
        for number, event in enumerate(self.events):
            for part in event.parts:
                yield number, part
