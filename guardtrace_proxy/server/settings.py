"""The schema of ``guardtrace.yaml``: what each setting is, and what one value of it may be by itself.

Whether settings fit together is :mod:`guardtrace_proxy.server.config`'s.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, field_validator, model_validator
from yarl import URL

from guardtrace_proxy.images import UrlPattern
from guardtrace_proxy.policy.schema import MOST, Settings
from guardtrace_proxy.wire.dialects import BY_ROUTE, DIALECTS
from guardtrace_proxy.wire.tags import ThinkingStyle

KEY_HASH = re.compile(r"sha256:[0-9a-fA-F]{64}", re.ASCII)
Milliseconds = Annotated[int, Field(ge=1, le=MOST)]
MOST_BYTES = 2**50
Bytes = Annotated[int, Field(ge=1024, le=MOST_BYTES)]


def _check_url(value: str) -> str:
    try:
        parts = urlsplit(value)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
        valid = valid and bool(URL(value).raw_host)
    except ValueError:
        valid = False
    if not valid or not value.isprintable() or " " in value:
        raise ValueError("expected an http:// or https:// URL with a host and a valid port")
    if parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError("expected a URL without query, fragment or user name")
    return value


def _check_base_url(value: str) -> str:
    """A route behind it is a likely slip, which would only show as a 404 of the server's."""
    path = urlsplit(_check_url(value)).path.rstrip("/")
    if path.endswith(("/chat/completions", *BY_ROUTE)):
        raise ValueError("expected the URL up to /v1 or the like: the route is added to it")
    return value


class ServerSettings(Settings):
    """Where the proxy listens and how much it takes. ``max_total_bytes`` bounds request bodies and what replies hold,
    all together; ``max_concurrent`` and ``max_lag_ms`` (how late the event loop may be; 0: as late as it is) say from
    when on requests are turned away.

    ``client_timeout_ms``: how long a client may leave its head unfinished, send nothing of its body (five times that
    for all of it), or take nothing of its reply.
    ``drain_ms``: how long replies may go on after the server was told to stop.
    ``keepalive_ms``: a stream in which nothing was sent for so long gets a comment; 0 sends none.
    """

    host: str = Field("127.0.0.1", min_length=1)
    port: int = Field(8080, ge=0, le=65535)
    max_body_bytes: Bytes = 33_554_432
    max_stream_bytes: Bytes = 8_388_608
    max_total_bytes: Bytes = 1_073_741_824
    max_concurrent: int = Field(4096, ge=1, le=MOST)
    max_lag_ms: int = Field(1000, ge=0, le=MOST)
    client_timeout_ms: Milliseconds = 60_000
    drain_ms: int = Field(30_000, ge=0, le=MOST)
    keepalive_ms: int = Field(15_000, ge=0, le=MOST)
    passthrough: list[str] = []


class ThinkingSettings(Settings):
    """Where the upstream's thinking stands."""

    style: Literal["auto", "field", "inline", "custom"] = "auto"
    starts_open: bool = False
    open: str | None = Field(None, min_length=1, max_length=200)
    close: str | None = Field(None, min_length=1, max_length=200)

    @property
    def as_style(self) -> ThinkingStyle:
        """The same for whoever reads replies."""
        return ThinkingStyle(self.style, self.starts_open, self.open, self.close)

    @model_validator(mode="after")
    def _tags_fit(self) -> ThinkingSettings:
        misfit = self.as_style.misfit()
        if misfit is not None:
            raise ValueError(misfit)
        return self


class ModelSettings(Settings):
    """How a model server is asked, over HTTP or from inside. ``read_timeout_ms`` bounds the silence between two reads:
    a busy one may queue a request for minutes before its first byte. ``api_key_header`` is where its key goes.
    ``allow_encrypted_reasoning``: reasoning that nobody can audit passes, each way. ``cache_salt``: whose salt keeps a
    request's prefixes apart in the model server's cache, the client's own if it sends one, or one of its tenant's."""

    api_key_env: str | None = None
    api_key_header: Literal["authorization", "x-api-key"] = "authorization"
    read_timeout_ms: Milliseconds = 600_000
    thinking: ThinkingSettings = ThinkingSettings()
    allow_fields: list[str] = []
    allow_encrypted_reasoning: bool = False
    cache_salt: Literal["client", "tenant"] = "client"

    @field_validator("allow_fields")
    @classmethod
    def _can_be_allowed(cls, value: list[str]) -> list[str]:
        for field in value:
            for dialect in DIALECTS:
                if field in dialect.unfollowed:
                    raise ValueError(f"{field} can't be allowed, since {dialect.unfollowed[field]}")
                if field in dialect.known:
                    raise ValueError(f"{field} is known already: {dialect.page} says what becomes of it")
        return value


class UpstreamSettings(ModelSettings):
    """A model server that is asked over HTTP, and asked again where not a byte of a reply came. ``ca_file``: whose
    certificates it may have, in place of certifi's list."""

    base_url: str
    ca_file: str | None = Field(None, min_length=1)
    retries: int = Field(1, ge=0, le=5)

    _url = field_validator("base_url")(_check_base_url)


class GuardSettings(Settings):
    """A guard model. ``base_url`` is one URL in the file, or a list; ``ca_file``, as an upstream's, is for all."""

    backend: Literal["openai", "transformers", "vllm"] = "openai"
    base_url: list[Annotated[str, AfterValidator(_check_base_url)]] | None = None
    ca_file: str | None = Field(None, min_length=1)
    api_key_env: str | None = None
    model: str = Field("DloadingX/GuardTrace-VL-3B", min_length=1)
    annotate_max_tokens: int = Field(512, ge=8, le=8192)
    max_context: int = Field(8192, ge=512, le=MOST)
    kv_cache_bytes: Bytes | None = None

    @field_validator("base_url", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        if isinstance(value, str):
            return [_check_base_url(value)]  # here, since a problem inside the list would be told as the list's
        if value is not None and not isinstance(value, list):
            raise ValueError("expected a URL, or a list of URLs")
        if value == []:
            raise ValueError("expected at least one URL")
        return value


class AuditorSettings(GuardSettings):
    """The guard model and how it is asked. ``fallback`` is asked in the same way where it fails;
    ``breaker_failures``: streams whose audits fail in a row until it is left alone for a while, None: never."""

    depth: Literal["label", "annotate", "cascade"] = "cascade"
    escalate_at: float | None = Field(None, gt=0, le=1)
    timeout_ms: Milliseconds = 5000
    annotate_timeout_ms: Milliseconds | None = None
    breaker_failures: int | None = Field(5, ge=1, le=MOST)
    fallback: GuardSettings | None = None

    @property
    def guards(self) -> dict[str, GuardSettings]:
        """By key: the auditor itself, and its fallback."""
        guards: dict[str, GuardSettings] = {"auditor": self}
        if self.fallback is not None:
            guards["auditor.fallback"] = self.fallback
        return guards


class LimitSettings(Settings):
    """What one tenant may ask for, in each process; None: as much as it likes."""

    concurrent: int | None = Field(None, ge=1, le=MOST)
    requests_per_minute: int | None = Field(None, ge=1, le=MOST)
    tokens_per_minute: int | None = Field(None, ge=1, le=MOST)


class TenantSettings(Settings):
    """Whose requests follow which policy and go to which upstream, and how many may there be."""

    keys: list[str] = []
    policy: str
    upstream: str = "default"
    limits: LimitSettings = LimitSettings()

    @field_validator("keys")
    @classmethod
    def _hashes(cls, value: list[str]) -> list[str]:
        for key in value:
            if not KEY_HASH.fullmatch(key):
                raise ValueError('expected "sha256:" and 64 hex digits; make one with `guardtrace keys new`')
        return value


def _check_pattern(value: str) -> str:
    UrlPattern.parse(value)
    return value


class ImageSettings(Settings):
    """Limits on a request's images, all of them together, and where they may be fetched from."""

    allow_urls: list[Annotated[str, AfterValidator(_check_pattern)]] = []
    max_count: int = Field(8, ge=0, le=MOST)
    max_bytes: Bytes = 20_971_520
    max_pixels: int = Field(40_000_000, ge=784, le=MOST)
    timeout_ms: Milliseconds = 3000


class LoggingSettings(Settings):
    """The log on standard error."""

    format: Literal["json", "console"] = "json"
    level: Literal["debug", "info", "warning", "error"] = "info"


class AuditLogSettings(Settings):
    """The record of decisions; none without ``path``. ``keep`` older files stay; ``queue_bytes`` wait for the disk."""

    path: str | None = Field(None, min_length=1)
    evidence: Literal["none", "redacted", "full"] = "none"
    max_bytes: int = Field(104_857_600, ge=1_048_576, le=MOST_BYTES)
    keep: int = Field(10, ge=1, le=1000)
    queue_bytes: int = Field(16_777_216, ge=65_536, le=MOST_BYTES)


class MetricsSettings(Settings):
    """Where Prometheus reads ``/metrics``: a port of its own, without a key; none where ``port`` is None."""

    host: str = Field("127.0.0.1", min_length=1)
    port: int | None = Field(None, ge=0, le=65535)


class TracingSettings(Settings):
    """Where spans are sent by OTLP over HTTP; nowhere where ``endpoint`` is None. ``sample`` is a share of the traces
    that begin here."""

    endpoint: Annotated[str, AfterValidator(_check_url)] | None = None
    sample: float = Field(1.0, ge=0, le=1)


class SettingsFile(Settings):
    """What a file says whichever door it is for."""

    server: ServerSettings = ServerSettings()
    upstreams: Mapping[str, ModelSettings]
    auditor: AuditorSettings
    policies_dir: str = "policies"
    tenants: dict[str, TenantSettings]
    anonymous_tenant: str | None = None
    images: ImageSettings = ImageSettings()
    logging: LoggingSettings = LoggingSettings()
    audit_log: AuditLogSettings = AuditLogSettings()
    metrics: MetricsSettings = MetricsSettings()
    tracing: TracingSettings = TracingSettings()


class ConfigFile(SettingsFile):
    """The proxy's file as it is written."""

    upstreams: dict[str, UpstreamSettings]
