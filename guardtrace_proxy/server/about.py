"""What is known of a reply before it comes: whose it is, and who judges it by what."""

from __future__ import annotations

from dataclasses import dataclass

from guardtrace_proxy.wire.request import Turns


@dataclass(frozen=True, slots=True)
class About:
    """For records and telemetry. No user text but ``queries`` (of several each has ``n`` choices) and what the client
    calls the ``model``."""

    request_id: str
    trace_id: str | None
    tenant: str
    key: str | None
    upstream: str
    route: str
    model: str
    stream: bool
    images: int
    policy: str
    policy_sha256: str
    auditor: str
    checkpoint: str | None
    queries: tuple[Turns, ...]
    n: int

    def turns(self, choice: int) -> Turns:
        """The conversation that a choice replies to."""
        return self.queries[choice // self.n]
