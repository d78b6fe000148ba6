"""A request's spans, where nobody traces: nothing is done and nothing is imported. ``otel`` has those that are sent.

No method takes text of a user's: attributes are words, numbers and names of the settings, and of a request what it
calls its model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

Value = str | int | float | bool


class RequestTrace:
    """The spans of one request, all of which may be left out."""

    trace_id: str | None = None
    """32 hex digits."""

    def describe(self, attributes: Mapping[str, Value | None]) -> None:
        """Say more of the request."""

    def answered(self, status: int | None) -> None:
        """The HTTP status that left, if one did."""

    @contextmanager
    def generation(self, name: str, attributes: Mapping[str, Value | None]) -> Iterator[dict[str, str]]:
        """Stands around the upstream's part; yields the headers by which it goes on with the trace."""
        yield {}

    def generated(self, attributes: Mapping[str, Value | None]) -> None:
        """Say what the upstream's part came to; within ``generation``."""

    def audit_began(self, choice: int) -> None:
        """A choice has one audit at a time."""

    def audit_ended(self, choice: int, attributes: Mapping[str, Value | None], failure: str | None) -> None:
        """The choice's audit came to its outcome."""

    def audits_dropped(self) -> None:
        """Nobody waits for the audits under way any more."""


NO_TRACE = RequestTrace()


class Tracing:
    """Traces no request."""

    @contextmanager
    def request(self, name: str, headers: Mapping[str, str], attributes: Mapping[str, Value]) -> Iterator[RequestTrace]:
        """Stands around a request; ``headers`` may carry the client's own ``traceparent``."""
        yield NO_TRACE

    def close(self) -> None:
        """Send what waits to be sent."""
