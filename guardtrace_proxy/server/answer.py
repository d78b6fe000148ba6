"""One request of an audited route: it is read, its images are resolved, the reply goes through the gate."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, nullcontext
from typing import TypeVar

import structlog

from guardtrace_proxy.gate import StreamGate
from guardtrace_proxy.images import FetchError, HeldImages, ImageError, ImageLimits, is_remote, resolve_images
from guardtrace_proxy.policy.schema import Policy, ReasoningField
from guardtrace_proxy.server.about import About
from guardtrace_proxy.server.asgi_io import Send
from guardtrace_proxy.server.cache_salt import with_cache_salt
from guardtrace_proxy.server.errors import ApiError
from guardtrace_proxy.server.event_stream import EventStream
from guardtrace_proxy.server.exchange import Exchange
from guardtrace_proxy.server.forwarded import trace_id_of, with_own_id
from guardtrace_proxy.server.gated_reply import events_of, send_stream, send_whole
from guardtrace_proxy.server.limits import Use
from guardtrace_proxy.server.record import ReplyRecord
from guardtrace_proxy.server.service import Service
from guardtrace_proxy.server.sessions import opener, sessions_of
from guardtrace_proxy.server.settings import ModelSettings
from guardtrace_proxy.server.span_attributes import of_generation, of_request
from guardtrace_proxy.server.tenants import Tenant
from guardtrace_proxy.server.upstream import UpstreamForRequest
from guardtrace_proxy.server.upstream_reply import Source
from guardtrace_proxy.telemetry.tracing import RequestTrace
from guardtrace_proxy.wire.dialects import Dialect
from guardtrace_proxy.wire.prefill import opening_of
from guardtrace_proxy.wire.reply import ReplySettings
from guardtrace_proxy.wire.request import Allowed, Request, RequestError

log = structlog.get_logger("guardtrace")

Asked = TypeVar("Asked", bound=Request)


async def answer(
    service: Service,
    tenant: Tenant,
    upstream: UpstreamForRequest,
    dialect: Dialect[Asked],
    body: bytes,
    forwarded: Mapping[str, str],
    use: Use,
    send: Send,
    trace: RequestTrace,
) -> None:
    """Answer one request. ``forwarded`` are the headers for the upstream, ``x-request-id`` among them; ``use`` is told
    how many tokens the request takes.

    Raises ApiError for everything that goes wrong before the reply has begun.
    """
    settings = service.config.upstreams[tenant.upstream]
    request = _read(dialect, body, settings)
    policy = _policy_for(dialect, request, tenant.loaded.policy)
    opening = None if request.prefill is None else opening_of(request.prefill, upstream.thinking)
    style = upstream.thinking if opening is None else opening.style
    if upstream.thinking.starts_open and style.starts_open:
        _check_thinks(request, policy)
    use.prompt([text for turns in request.queries for _, text in turns])
    images = await _images(service, request)
    about = _about(service, tenant, dialect, request, len(images), forwarded, trace)
    trace.describe(of_request(about))
    open_session = opener(service.auditor, request, images, about, opening)
    with service.budget.counting(lambda: images.held_bytes):
        async with sessions_of(request, open_session, service.config.auditor.timeout_ms) as sessions:
            max_bytes = service.config.server.max_stream_bytes
            reply = dialect.reply(request, ReplySettings(style, max_bytes, about.request_id))
            gate = StreamGate(
                policy,
                reply,
                capacity=min(session.capacity for session in sessions.values()),
                max_stream_bytes=max_bytes,
                choices=request.choices,
            )
            record = ReplyRecord(about, policy, gate, service, trace, use)
            out = EventStream(send, reply, record.headers(), service.config.server.keepalive_ms)
            body = _for_upstream(service, tenant, dialect, request, images, body)
            kept_alive = out.kept_alive(service.drain) if request.stream else nullcontext()
            asking = _asked(upstream, dialect.path, body, forwarded, trace, about, settings)
            async with kept_alive, asking as source:
                exchange = Exchange(
                    gate,
                    service.plan_for(policy),
                    sessions,
                    open_session=open_session,
                    rest=reply.end,
                    close_upstream=source.close,
                    on_asked=record.asked,
                    on_decided=record.decided,
                    on_said=record.count_tokens,
                )
                with record.running():
                    if request.stream:
                        events = events_of(source, reply, gate, settings.read_timeout_ms / 1000, record)
                        with service.budget.counting(lambda: reply.kept_bytes + exchange.held_bytes):
                            await send_stream(exchange, events, source, out, record, service.drain)
                    else:
                        await send_whole(exchange, source, reply, dialect, service, record, send)
            if out.failure is not None:
                service.metrics.error(out.failure.status)


def _read(dialect: Dialect[Asked], body: bytes, settings: ModelSettings) -> Asked:
    try:
        return dialect.read_request(body, Allowed(settings.allow_fields, settings.allow_encrypted_reasoning))
    except RequestError as error:
        raise ApiError(400, error.message, param=error.param, code=error.code) from None


def _policy_for(dialect: Dialect[Asked], request: Asked, policy: Policy) -> Policy:
    """The tenant's policy; where the client asks not to see the thinking, it is audited and then stripped."""
    field = policy.reasoning_field
    if request.hides_reasoning:
        field = ReasoningField.STRIP
    elif not dialect.has_reasoning_fields and field is not ReasoningField.STRIP:
        field = ReasoningField.AS_IS
    return policy if field is policy.reasoning_field else policy.model_copy(update={"reasoning_field": field})


def _check_thinks(request: Request, policy: Policy) -> None:
    """Of a reply that starts open: raises ApiError 400 where thinking is turned off and mustn't stand with the answer.

    A reply without thinking has no tag to tell so. Nor has one of an upstream that thinks all the same, until it is
    over, or never, if it is stopped at its closing tag: read as answer, it would leave.
    """
    if request.turned_off_by is None or policy.thinking_goes is ReasoningField.AS_IS:
        return
    raise ApiError(
        400,
        f"{request.turned_off_by}: thinking can't be turned off here: this upstream's replies are thinking up to a "
        "closing tag, and a reply without one would be kept back as thinking.",
        param=request.turned_off_by,
        code="invalid_value",
    )


async def _images(service: Service, request: Request) -> HeldImages:
    settings = service.config.images
    limits = ImageLimits(settings.max_count, settings.max_bytes, settings.max_pixels)
    try:
        return await resolve_images(request.images, limits, service.image_fetcher)
    except ImageError as error:
        if isinstance(error, FetchError):
            log.info("image not fetched", field=error.field, reason=error.reason)
        raise ApiError(400, str(error), param=error.field, code="invalid_image") from None


def _about(
    service: Service,
    tenant: Tenant,
    dialect: Dialect[Asked],
    request: Request,
    images: int,
    forwarded: Mapping[str, str],
    trace: RequestTrace,
) -> About:
    return About(
        request_id=forwarded["x-request-id"],
        trace_id=trace.trace_id or trace_id_of(forwarded),
        tenant=tenant.name,
        key=tenant.key,
        upstream=tenant.upstream,
        route=dialect.route,
        model=request.model,
        stream=request.stream,
        images=images,
        policy=tenant.policy,
        policy_sha256=tenant.loaded.sha256,
        auditor=service.auditor.name,
        checkpoint=service.checkpoint,
        queries=request.queries,
        n=request.n,
    )


def _for_upstream(
    service: Service,
    tenant: Tenant,
    dialect: Dialect[Asked],
    request: Asked,
    images: HeldImages,
    body: bytes,
) -> bytes:
    """The body that is sent on: with the very images that the auditor sees, and the tenant's salt if asked for."""
    urls = images.data_urls if any(is_remote(url) for url, _ in request.images) else None
    body = dialect.body_for_upstream(body, request, urls)
    if service.config.upstreams[tenant.upstream].cache_salt == "tenant":
        return with_cache_salt(body, tenant.name, service.cache_salts)
    return body


@asynccontextmanager
async def _asked(
    upstream: UpstreamForRequest,
    path: str,
    body: bytes,
    forwarded: Mapping[str, str],
    trace: RequestTrace,
    about: About,
    settings: ModelSettings,
) -> AsyncIterator[Source]:
    """The upstream's reply, which is a part of the trace."""
    with trace.generation(*of_generation(about, settings)) as headers:
        async with upstream.ask(path, body, {**with_own_id(forwarded), **headers}) as source:
            yield source
