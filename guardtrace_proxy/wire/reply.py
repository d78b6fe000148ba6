"""What every dialect's reply can do: read what the upstream sends, and write what must leave in the place of it.

The gate knows the writer, the server both. Each dialect implements them in one class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from guardtrace_proxy.wire.events import Event, MoreText
from guardtrace_proxy.wire.fates import Cut, Fate
from guardtrace_proxy.wire.tags import ThinkingStyle


class ReplySettings(NamedTuple):
    """What a reply is read and written by, besides its request. ``request_id`` stands in errors that name one."""

    thinking: ThinkingStyle
    max_event_bytes: int
    request_id: str


class Writer(Protocol):
    """Writes with the stream's own ids, model and times."""

    def passes(self, event: Event) -> bool:
        """Asked of each event that is about to leave as it came, in order. False where it can't, since it repeats or
        belongs to text that left otherwise: then ``rewrite`` is asked, with fates that alter nothing."""

    def rewrite(self, event: Event, fates: Mapping[int, Fate]) -> bytes:
        """The event with only these choices; altered ones are rebuilt from known fields alone.

        Returns b"" where nothing worth sending is left. Cut occurs only in events of kind COMPLETION.
        """

    def cut(self, index: int, cut: Cut) -> bytes:
        """The closing frames of one choice, without usage and without the end of the stream."""

    def note(self, index: int, note: Mapping[str, Any]) -> bytes:
        """An empty delta that carries a ``guardtrace`` object; b"" where the dialect has no place for one here."""

    def usage(self, usage: Mapping[str, Any] | None, tokens_read: int, *, expose: bool) -> bytes:
        """The frame with the usage, behind the closing frames of the last cut choice; b"" where none is due.

        ``usage`` is the upstream's last running usage; without one ``tokens_read`` stands for it and is marked.
        """

    def error(self, message: str, type: str, code: str | int | None, param: str | None = None) -> bytes:
        """A frame in the dialect's error shape (or, for a reply that isn't streamed, the body)."""

    def done(self) -> bytes:
        """The end of the stream."""


class Reply(Writer, Protocol):
    """One reply of an upstream."""

    @property
    def kept_bytes(self) -> int:
        """Of an event that isn't complete, and of text that is kept because it may be said again."""

    def feed(self, data: bytes) -> Sequence[Event | MoreText]:
        """The events that are complete with ``data``, which may be cut anywhere."""

    def more(self, data: bytes) -> MoreText | None:
        """The event that ``data`` is, where it is one, whole, and only brings more text. None: it wasn't read, ``feed``
        it."""

    def end(self) -> Sequence[Event | MoreText]:
        """What is left at the end of the connection."""

    def completion(self, body: bytes) -> Event:
        """A reply that wasn't streamed: an event of kind COMPLETION, or MALFORMED."""
