"""What lives as long as the server: settings, policies, upstreams and the auditor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import structlog
from prometheus_client import ProcessCollector

from guardtrace_proxy.auditor import make_auditor
from guardtrace_proxy.auditor.breaker import Breaker, BreakingPlan
from guardtrace_proxy.auditor.cascade import ESCALATE_AT, AuditPlan, within
from guardtrace_proxy.auditor.prompt import Query, Trace, Turn
from guardtrace_proxy.auditor.protocol import Auditor, AuditorError
from guardtrace_proxy.auditor.replicas import ReplicatedAuditor
from guardtrace_proxy.auditor.salts import OF_ALL_WORKERS, Salts
from guardtrace_proxy.gate import Decided
from guardtrace_proxy.images import AllowList, ImageFetcher
from guardtrace_proxy.policy.schema import Policy
from guardtrace_proxy.records.audit_log import AuditLog
from guardtrace_proxy.records.line_file import LineFile
from guardtrace_proxy.server.budget import HeldBytes
from guardtrace_proxy.server.config import Config
from guardtrace_proxy.server.drain import Drain
from guardtrace_proxy.server.gauges import ServiceGauges
from guardtrace_proxy.server.limits import Limits
from guardtrace_proxy.server.metrics_listener import MetricsListener
from guardtrace_proxy.server.settings import AuditLogSettings, AuditorSettings, ModelSettings, TracingSettings
from guardtrace_proxy.server.shedding import Shedding
from guardtrace_proxy.server.upstream import ModelServer, Upstream
from guardtrace_proxy.telemetry.metrics import Metrics
from guardtrace_proxy.telemetry.tracing import Tracing

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

log = structlog.get_logger("guardtrace")

PROBE = Query([Turn("user", "What is 2 + 2?")]), Trace("Two and two make four.", "4")
"""What the auditor is asked once at start, to learn whether it answers at all."""

PROBE_AGAIN_SECONDS = 30.0
CLOSE_SECONDS = 5.0


def auditor_from(settings: AuditorSettings, environ: Mapping[str, str]) -> Auditor:
    """The auditor that the config names, with its fallback."""
    auditors = {
        key: make_auditor(
            backend=guard.backend,
            model=guard.model,
            base_url=guard.base_url,
            ca_file=guard.ca_file,
            api_key=environ.get(guard.api_key_env) if guard.api_key_env else None,
            depth=settings.depth,
            timeout_ms=settings.annotate_timeout_ms or settings.timeout_ms,
            annotate_max_tokens=guard.annotate_max_tokens,
            max_context=guard.max_context,
            kv_cache_bytes=guard.kv_cache_bytes,
        )
        for key, guard in settings.guards.items()
    }
    return ReplicatedAuditor(auditors, in_order=True) if settings.fallback else auditors["auditor"]


def audit_plan(settings: AuditorSettings, calibrated: float | None, policy: Policy) -> AuditPlan:
    """How replies under ``policy`` are audited. ``calibrated`` is the checkpoint's own ``escalate_at``.

    A cascade escalates at the policy's own thresholds at the latest, so that no label read alone is ever acted on.
    """
    wanted = next(value for value in (settings.escalate_at, calibrated, ESCALATE_AT) if value is not None)
    return AuditPlan(
        settings.depth, settings.timeout_ms, settings.annotate_timeout_ms, min(wanted, policy.thresholds.least)
    )


def api_key_of(settings: ModelSettings, environ: Mapping[str, str]) -> str | None:
    """The model server's own key."""
    return environ.get(settings.api_key_env) if settings.api_key_env else None


def _over_http(config: Config, environ: Mapping[str, str]) -> dict[str, ModelServer]:
    return {
        name: Upstream(
            name,
            settings.base_url,
            api_key_of(settings, environ),
            settings.thinking.as_style,
            ca_file=settings.ca_file,
            read_timeout_ms=settings.read_timeout_ms,
            retries=settings.retries,
            api_key_header=settings.api_key_header,
        )
        for name, settings in config.over_http.items()
    }


def audit_log_from(settings: AuditLogSettings) -> AuditLog | None:
    """The audit log that the config names, if it names one."""
    if settings.path is None:
        return None
    return AuditLog(LineFile(Path(settings.path), settings.max_bytes, settings.keep), settings.queue_bytes)


def metrics_listener_from(
    host: str, port: int | None, metrics: Metrics, gauges: ServiceGauges
) -> MetricsListener | None:
    """Where the metrics are read, if anything says where."""
    if port is None:
        return None
    ProcessCollector(registry=metrics.registry)
    return MetricsListener(metrics.registry, gauges, host, port)


def tracing_from(settings: TracingSettings, provider: TracerProvider | None) -> Tracing:
    """By a program's own provider, else as the config says."""
    if provider is None and settings.endpoint is None:
        return Tracing()
    from guardtrace_proxy.telemetry.otel import OtelTracing, exporting_to  # here, since it needs the extra `otel`

    if provider is not None:
        return OtelTracing(provider)
    assert settings.endpoint is not None
    own = exporting_to(settings.endpoint, settings.sample)
    return OtelTracing(own, own=own)


class Service:
    """Started and closed with the server.

    ``auditor``, ``image_fetcher``, ``upstreams`` and ``tracer_provider`` may be given, where a program brings its own.
    """

    def __init__(
        self,
        config: Config,
        environ: Mapping[str, str],
        *,
        auditor: Auditor | None = None,
        observer: Callable[[Decided], None] | None = None,
        image_fetcher: ImageFetcher | None = None,
        upstreams: Mapping[str, ModelServer] | None = None,
        tracer_provider: TracerProvider | None = None,
        metrics_port: int | None = None,
    ) -> None:
        self.config = config
        self.observer = observer
        self.auditor = auditor or auditor_from(config.auditor, environ)
        self.checkpoint: str | None = None
        """The hash of the auditor's weights, where they are in this process and decisions are recorded."""
        self._knows_weights = auditor is None and config.auditor.backend != "openai"
        self.image_fetcher = image_fetcher or ImageFetcher(
            AllowList(config.images.allow_urls), config.images.timeout_ms
        )
        self.breaker = Breaker(config.auditor.breaker_failures)
        """Stands before each audit of a reply; its ``circuit`` tells how the auditor is doing."""
        self.budget = HeldBytes(config.server.max_total_bytes)
        self.shedding = Shedding(config.server.max_concurrent, self.budget, config.server.max_lag_ms)
        self.limits = Limits()
        self.cache_salts = Salts(OF_ALL_WORKERS)
        """For upstreams whose ``cache_salt`` is the tenant's."""
        self.drain = Drain()
        self.audit_log = audit_log_from(config.audit_log)
        self.metrics = Metrics()
        port = config.metrics.port if metrics_port is None else metrics_port
        self.metrics_listener = metrics_listener_from(config.metrics.host, port, self.metrics, ServiceGauges(self))
        self.tracing = tracing_from(config.tracing, tracer_provider)
        self.probed: str | None = None
        """None until one audit was tried, then ``ok`` or what went wrong with the last that was."""
        self.upstreams = _over_http(config, environ) if upstreams is None else upstreams

    async def start(self) -> None:
        """Load the auditor, open the upstreams; raises AuditorSettingsError where it can't work as configured.

        Where a part doesn't start, those that did are closed.
        """
        async with AsyncExitStack() as opened:
            await self.auditor.start()
            opened.push_async_callback(self.auditor.aclose)
            for warning in self.auditor.warnings:
                log.warning("auditor", warning=warning)
            for upstream in self.upstreams.values():
                await upstream.start()
                opened.push_async_callback(upstream.aclose)
            await self.image_fetcher.start()
            opened.push_async_callback(self.image_fetcher.aclose)
            if self.metrics_listener is not None:
                await self.metrics_listener.start()
                opened.push_async_callback(self.metrics_listener.aclose)
            if self.audit_log is not None:
                self.checkpoint = await self._hash_weights()
                self.audit_log.start()
            self.shedding.start()
            opened.pop_all()

    async def _hash_weights(self) -> str | None:
        if not self._knows_weights:
            return None
        from guardtrace_proxy.auditor.checkpoint import weights_sha256  # here, since it needs torch

        return await anyio.to_thread.run_sync(weights_sha256, self.config.auditor.model)

    def plan_for(self, policy: Policy) -> BreakingPlan:
        """How one reply under ``policy`` is audited."""
        plan = audit_plan(self.config.auditor, self.auditor.escalate_at, policy)
        return BreakingPlan(plan, self.breaker)

    async def keep_probing(self) -> None:
        """Try an audit, again and again until it is answered: a proxy may start before its auditor."""
        await self.probe()
        while self.probed != "ok":
            await anyio.sleep(PROBE_AGAIN_SECONDS)
            await self.probe()

    async def probe(self) -> None:
        """Try one audit, with each kind of read that audits may need.

        A failure is told, not raised: every policy says what to do without an auditor.
        """
        query, trace = PROBE
        settings, began = self.config.auditor, anyio.current_time()
        plan = AuditPlan(settings.depth, settings.timeout_ms, settings.annotate_timeout_ms)
        before = self.probed
        try:
            with within(plan.timeout_ms, began):
                session = await self.auditor.open(query)
            try:
                await plan.try_out(session, trace, began)
            finally:
                await session.aclose()
            self.probed = "ok"
        except AuditorError as error:
            self.probed = str(error)
        except Exception as error:  # an auditor that raises what it shouldn't fails audits, not the server
            self.probed = f"the auditor raised {type(error).__name__}"
        if self.probed == before:
            return
        if self.probed == "ok":
            log.info("auditor probed", auditor=self.auditor.name, result="ok")
        else:
            log.warning("auditor probed", auditor=self.auditor.name, result=self.probed)

    async def aclose(self) -> None:
        """Close the upstreams, the auditor and what fetches images, within ``CLOSE_SECONDS``; then write the audit log
        to its end and send the last spans, each within its own."""
        self.shedding.stop()
        with anyio.move_on_after(CLOSE_SECONDS, shield=True) as closing:
            if self.metrics_listener is not None:
                await self.metrics_listener.aclose()
            await self.image_fetcher.aclose()
            for upstream in self.upstreams.values():
                await upstream.aclose()
            await self.auditor.aclose()
        if closing.cancelled_caught:
            log.error("didn't close in time", seconds=CLOSE_SECONDS)
        with anyio.CancelScope(shield=True):
            if self.audit_log is not None:
                await anyio.to_thread.run_sync(self.audit_log.close)
            with anyio.move_on_after(CLOSE_SECONDS):  # a collector may take connections and never answer
                await anyio.to_thread.run_sync(self.tracing.close, abandon_on_cancel=True)
