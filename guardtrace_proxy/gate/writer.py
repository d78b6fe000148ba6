"""What the gate asks of a dialect when something must leave that the upstream didn't send as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from guardtrace_proxy.wire.events import Event
from guardtrace_proxy.wire.fates import Cut, Fate


class Writer(Protocol):
    """Implemented by each dialect in ``wire/``, with the stream's own id, model and created."""

    def rewrite(self, event: Event, fates: Mapping[int, Fate]) -> bytes:
        """The event with only these choices; altered ones are rebuilt from known fields alone.

        Returns b"" where nothing worth sending is left. Cut occurs only in events of kind COMPLETION.
        """

    def cut(self, index: int, cut: Cut) -> bytes:
        """The closing frames of one choice, without usage and without the end of the stream."""

    def note(self, index: int, note: Mapping[str, Any]) -> bytes:
        """An empty delta that carries a ``guardtrace`` object."""

    def usage(self, usage: Mapping[str, Any] | None, tokens_read: int, *, expose: bool) -> bytes:
        """The usage chunk after a cut, b"" where the request didn't ask for one.

        ``usage`` is the upstream's last running usage; without one ``tokens_read`` stands for it and is marked.
        """

    def error(self, message: str, type: str, code: str) -> bytes:
        """A frame in OpenAI's error shape (or, for a reply that isn't streamed, the body)."""

    def done(self) -> bytes:
        """The end of the stream."""
