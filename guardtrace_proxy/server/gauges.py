"""What is read off the service whenever its metrics are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from guardtrace_proxy import __version__
from guardtrace_proxy.auditor.breaker import Circuit
from guardtrace_proxy.auditor.protocol import MEASURES, Measured
from guardtrace_proxy.records.audit_log import AuditLog

if TYPE_CHECKING:
    from guardtrace_proxy.server.service import Service


class ServiceGauges(Collector):
    """Gauges of held bytes, the auditor and the audit log."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        service = self._service
        auditor = service.auditor
        about = {"version": __version__, "auditor": auditor.name, "depth": service.config.auditor.depth}
        yield InfoMetricFamily("guardtrace", "What runs.", value=about)
        yield _gauge(
            "held_bytes",
            "Bytes of request bodies, of images, of replies until sent and judged, and of text kept.",
            service.budget.total,
        )
        yield _gauge("held_bytes_limit", "server.max_total_bytes.", service.config.server.max_total_bytes)
        yield _gauge(
            "requests_running", "Requests under way, of audited routes and of /v1/models.", service.shedding.running
        )
        yield _counter("requests_shed", "Requests turned away: the process is overloaded.", service.shedding.shed)
        yield _limited(service.limits.refused)
        yield _gauge("event_loop_lag_seconds", "How late the event loop is.", service.shedding.lag_ms / 1000)
        yield _circuit(service.breaker.circuit)
        yield _gauge(
            "auditor_probe_ok",
            "1 where the audit that is tried at start, and every 30 s until it is answered, was.",
            service.probed == "ok",
        )
        if isinstance(auditor, Measured):
            for name, value in auditor.measures().items():
                family = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
                yield family(f"guardtrace_auditor_{name}", MEASURES[name], value=value)
        if service.audit_log is not None:
            yield from _of_audit_log(service.audit_log)


def _of_audit_log(log: AuditLog) -> Iterator[Metric]:
    yield _counter("audit_log_lines", "Decisions that were written.", log.written)
    yield _counter("audit_log_lost", "Decisions that were lost.", log.lost)
    yield _gauge("audit_log_waiting_bytes", "Bytes that wait for the file.", log.waiting_bytes)
    yield _gauge("audit_log_failing", "1 while the file can't be written, or a write hangs.", log.is_failing)


def _limited(refused: Mapping[tuple[str, str], int]) -> Metric:
    told = "Requests turned away at a limit of their tenant (tenants.NAME.limits)."
    family = CounterMetricFamily("guardtrace_requests_limited", told, labels=["tenant", "limit"])
    for labels, number in list(refused.items()):  # read in a thread beside those that are counted
        family.add_metric(labels, number)
    return family


def _circuit(now: Circuit) -> Metric:
    told = "1 for the state of the circuit breaker before the auditor."
    family = GaugeMetricFamily("guardtrace_auditor_circuit", told, labels=["state"])
    for state in Circuit:
        family.add_metric([state.value], float(state is now))
    return family


def _gauge(name: str, told: str, value: float) -> Metric:
    return GaugeMetricFamily(f"guardtrace_{name}", told, value=float(value))


def _counter(name: str, told: str, value: float) -> Metric:
    return CounterMetricFamily(f"guardtrace_{name}", told, value=float(value))
