"""Spans for OpenTelemetry, by its conventions for HTTP and for generative AI. Needs the extra ``otel``.

https://opentelemetry.io/docs/specs/semconv/http/http-spans/ and …/gen-ai/gen-ai-spans/. Spans carry no exceptions,
whose messages may hold text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry.context import Context
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider as SdkProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, TracerProvider, format_trace_id, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from guardtrace_proxy import __version__
from guardtrace_proxy.telemetry.tracing import RequestTrace, Tracing, Value

PROPAGATOR = TraceContextTextMapPropagator()
FLUSH_MS = 3000


def exporting_to(endpoint: str, sample: float) -> SdkProvider:
    """A provider that sends spans by OTLP over HTTP. What the settings don't say, the environment may (``OTEL_*``)."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    ours = Resource.create({"service.name": "guardtrace-proxy", "service.version": __version__})
    resource = ours.merge(OTELResourceDetector().detect())
    provider = SdkProvider(sampler=ParentBased(TraceIdRatioBased(sample)), resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
    return provider


class OtelTracing(Tracing):
    """Traces every request that the provider's sampler takes."""

    def __init__(self, provider: TracerProvider, *, own: SdkProvider | None = None) -> None:
        """``own`` is shut down with the service; another's provider isn't."""
        self._tracer = provider.get_tracer("guardtrace_proxy", __version__)
        self._own = own

    @contextmanager
    def request(self, name: str, headers: Mapping[str, str], attributes: Mapping[str, Value]) -> Iterator[RequestTrace]:
        parent = PROPAGATOR.extract(headers)
        span = self._tracer.start_span(name, parent, SpanKind.SERVER, dict(attributes))
        trace = OtelRequestTrace(self._tracer, span)
        try:
            yield trace
        finally:
            trace.audits_dropped()
            span.end()

    def close(self) -> None:
        if self._own is not None:
            self._own.force_flush(FLUSH_MS)
            self._own.shutdown()


class OtelRequestTrace(RequestTrace):
    """The spans of one request: its own, the upstream's part and the audits below it."""

    def __init__(self, tracer: Tracer, span: Span) -> None:
        self.trace_id = format_trace_id(span.get_span_context().trace_id)
        self._tracer = tracer
        self._span = span
        self._below: Context = set_span_in_context(span)
        self._generation: Span | None = None
        self._audits: dict[int, Span] = {}

    def describe(self, attributes: Mapping[str, Value | None]) -> None:
        _set(self._span, attributes)

    def answered(self, status: int | None) -> None:
        if status is None:  # the client left before
            return
        self._span.set_attribute("http.response.status_code", status)
        if status >= 500:
            self._span.set_status(StatusCode.ERROR)

    @contextmanager
    def generation(self, name: str, attributes: Mapping[str, Value | None]) -> Iterator[dict[str, str]]:
        span = self._generation = self._tracer.start_span(name, self._below, SpanKind.CLIENT)
        _set(span, attributes)
        headers: dict[str, str] = {}
        PROPAGATOR.inject(headers, set_span_in_context(span))
        try:
            yield headers
        except Exception as error:
            span.set_attribute("error.type", type(error).__name__)
            span.set_status(StatusCode.ERROR)
            raise
        finally:
            span.end()

    def generated(self, attributes: Mapping[str, Value | None]) -> None:
        if self._generation is not None:
            _set(self._generation, attributes)

    def audit_began(self, choice: int) -> None:
        self._audits[choice] = self._tracer.start_span("guardtrace.audit", self._below, SpanKind.INTERNAL)

    def audit_ended(self, choice: int, attributes: Mapping[str, Value | None], failure: str | None) -> None:
        span = self._audits.pop(choice)
        _set(span, attributes)
        if failure is not None:
            span.set_attribute("error.type", failure)
            span.set_status(StatusCode.ERROR)
        span.end()

    def audits_dropped(self) -> None:
        while self._audits:
            _, span = self._audits.popitem()
            span.set_attribute("guardtrace.dropped", True)
            span.end()


def _set(span: Span, attributes: Mapping[str, Value | None]) -> None:
    if span.is_recording():
        span.set_attributes({name: value for name, value in attributes.items() if value is not None})
