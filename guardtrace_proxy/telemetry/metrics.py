"""What is counted, for Prometheus. docs/telemetry.md has all names in a table, held to them by a test.

Labels are names of the settings (tenants), routes and words of our own, so their number is bounded by the settings;
never a request's text, model or id. Counted at boundaries and at the ends of replies, not for each token.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.registry import Collector

AUDIT_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
FIRST_TEXT_SECONDS = (*AUDIT_SECONDS, 300.0, 600.0)
"""To the default of ``upstreams.*.read_timeout_ms``."""


class Metrics:
    """The counters of one service, in a registry of its own: several may live in one process."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._replies = Counter(
            "guardtrace_replies",
            "Replies by their most severe action that was carried out, why it was, and how they ended.",
            ["tenant", "route", "action", "reason", "end"],
            registry=registry,
        )
        self._running = Gauge("guardtrace_replies_running", "Replies under way.", registry=registry)
        self._errors = Counter(
            "guardtrace_errors",
            "Requests that were answered with an error, by HTTP status.",
            ["status"],
            registry=registry,
        )
        self._tokens = Counter(
            "guardtrace_tokens",
            "Tokens that were judged, or that no verdict came for.",
            ["tenant", "phase"],
            registry=registry,
        )
        self._audits = Counter(
            "guardtrace_audits",
            "Verdicts by what decided, level and action; enforced is false where they are only recorded.",
            ["tenant", "phase", "depth", "level", "action", "enforced"],
            registry=registry,
        )
        self._failures = Counter(
            "guardtrace_audit_failures", "Audits without a verdict, by why.", ["tenant", "kind"], registry=registry
        )
        self._escalated = Counter(
            "guardtrace_escalated_audits",
            "Audits that a cascade wanted annotated; lost is true where the label had to decide.",
            ["lost"],
            registry=registry,
        )
        self._auditing = Gauge(
            "guardtrace_audits_running", "Audits that were asked for and aren't answered.", registry=registry
        )
        self._audit_seconds = Histogram(
            "guardtrace_audit_seconds",
            "From asking for an audit to its outcome, waiting for the auditor included.",
            ["depth"],
            buckets=AUDIT_SECONDS,
            registry=registry,
        )
        self._hold_seconds = Histogram(
            "guardtrace_hold_seconds",
            "How long the oldest text of a chunk was held, until its verdict.",
            ["phase"],
            buckets=AUDIT_SECONDS,
            registry=registry,
        )
        self._upstream_first_seconds = Histogram(
            "guardtrace_upstream_first_text_seconds",
            "Of streams: from asking the upstream to its first text.",
            ["upstream"],
            buckets=FIRST_TEXT_SECONDS,
            registry=registry,
        )
        self._client_first_seconds = Histogram(
            "guardtrace_client_first_text_seconds",
            "Of streams: from asking the upstream to the first text that left for the client.",
            ["upstream"],
            buckets=FIRST_TEXT_SECONDS,
            registry=registry,
        )
        self._reloads = Counter(
            "guardtrace_reloads",
            "Settings that were read again: used, or refused, so that the old ones stay.",
            ["outcome"],
            registry=registry,
        )
        for outcome in ("used", "refused"):
            self._reloads.labels(outcome)  # there from the start, so that the first one shows as a rise

    def reply_began(self) -> None:
        self._running.inc()

    def reply_ended(self, *, tenant: str, route: str, action: str, reason: str, end: str) -> None:
        self._running.dec()
        self._replies.labels(tenant, route, action, reason, end).inc()

    def error(self, status: int) -> None:
        self._errors.labels(str(status)).inc()

    def first_text_came(self, upstream: str, seconds: float) -> None:
        self._upstream_first_seconds.labels(upstream).observe(seconds)

    def first_text_left(self, upstream: str, seconds: float) -> None:
        self._client_first_seconds.labels(upstream).observe(seconds)

    def reloaded(self, used: bool) -> None:
        self._reloads.labels("used" if used else "refused").inc()

    def audit_began(self) -> None:
        self._auditing.inc()

    def audits_dropped(self, number: int) -> None:
        """Audits that nobody waits for any more: of a reply that ended before their outcome."""
        self._auditing.dec(number)

    def judged(
        self,
        *,
        tenant: str,
        phase: str,
        depth: str,
        level: str,
        action: str,
        enforced: bool,
        escalated: bool,
        tokens: int,
        audit_seconds: float,
        hold_seconds: float,
    ) -> None:
        """An audit ended with a verdict."""
        self._audits.labels(tenant, phase, depth, level, action, _word(enforced)).inc()
        if escalated:
            self._escalated.labels(_word(depth == "label")).inc()
        self._ended(tenant, phase, depth, tokens, audit_seconds, hold_seconds)

    def failed(
        self, *, tenant: str, phase: str, kind: str, tokens: int, audit_seconds: float, hold_seconds: float
    ) -> None:
        """An audit ended without a verdict."""
        self._failures.labels(tenant, kind).inc()
        self._ended(tenant, phase, "failed", tokens, audit_seconds, hold_seconds)

    def _ended(
        self, tenant: str, phase: str, depth: str, tokens: int, audit_seconds: float, hold_seconds: float
    ) -> None:
        self._auditing.dec()
        self._tokens.labels(tenant, phase).inc(tokens)
        self._audit_seconds.labels(depth).observe(audit_seconds)
        self._hold_seconds.labels(phase).observe(hold_seconds)


class Reading(Collector):
    """A registry's counters with gauges that were read beside them, less the times at which each series began: those
    double their number, nobody asks for them, and the client's own switch is global while the process may be another's.
    """

    def __init__(self, registry: CollectorRegistry, gauges: Iterable[Metric]) -> None:
        self._registry = registry
        self._gauges = gauges

    def collect(self) -> Iterator[Metric]:
        yield from self._gauges
        for family in self._registry.collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family


def _word(value: bool) -> str:
    return "true" if value else "false"
