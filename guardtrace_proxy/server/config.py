"""``guardtrace.yaml`` read: the settings with the policies that they name, and whether all of it fits together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from yarl import URL

from guardtrace_proxy.auditor import no_such_built_in
from guardtrace_proxy.policy.errors import ConfigError, PolicyError, Problem
from guardtrace_proxy.policy.loading import LoadedPolicy, find_policy, load_policy
from guardtrace_proxy.policy.yaml_file import BadYaml, YamlFile, problems_of, read_yaml
from guardtrace_proxy.server.ca_files import ca_file_problems, with_ca_paths
from guardtrace_proxy.server.settings import (
    AuditLogSettings,
    AuditorSettings,
    ConfigFile,
    GuardSettings,
    ImageSettings,
    LoggingSettings,
    MetricsSettings,
    ModelSettings,
    ServerSettings,
    SettingsFile,
    TenantSettings,
    TracingSettings,
    UpstreamSettings,
)

EXAMPLE_KEYS = frozenset(
    (
        "sha256:509e83faa6425f2d51b3fe6d454bcd91c01cbc9d328d32afa427ff3dc54058b1",
        "sha256:700f079c51a623beb6a9a08957d44c45117be4be4e2050ad3bf6dbd4e265cb7c",
    )
)
"""Hashes of the keys that examples/README.md prints."""


@dataclass(frozen=True)
class Config:
    """The settings with the policies that they name."""

    server: ServerSettings
    upstreams: Mapping[str, ModelSettings]
    auditor: AuditorSettings
    tenants: dict[str, TenantSettings]
    anonymous_tenant: str | None
    images: ImageSettings
    logging: LoggingSettings
    audit_log: AuditLogSettings
    metrics: MetricsSettings
    tracing: TracingSettings
    policies: dict[str, LoadedPolicy]
    policies_dir: Path

    @property
    def over_http(self) -> dict[str, UpstreamSettings]:
        """The upstreams, but for the app that a middleware stands before."""
        return {name: each for name, each in self.upstreams.items() if isinstance(each, UpstreamSettings)}

    @property
    def tenants_without_key(self) -> list[str]:
        """Those that nobody can be."""
        return [name for name, each in self.tenants.items() if not each.keys and name != self.anonymous_tenant]

    @property
    def tenants_with_a_known_key(self) -> list[str]:
        """Those that anybody can be."""
        return [name for name, each in self.tenants.items() if EXAMPLE_KEYS & {key.lower() for key in each.keys}]


F = TypeVar("F", bound=SettingsFile)
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


def load_config(path: Path, environ: Mapping[str, str]) -> Config:
    """Read the proxy's guardtrace.yaml and every policy that it names; raises ConfigError with all problems."""
    try:
        file = read_yaml(path)
    except BadYaml as error:
        raise ConfigError([error.problem]) from None
    settings = validated(file, ConfigFile)
    return config_of(settings, file, environ, _not_yet(settings, file))


def validated(file: YamlFile, model: type[F]) -> F:
    """The file's content; raises ConfigError."""
    try:
        return model.model_validate(file.content)
    except ValidationError as error:
        raise ConfigError(problems_of(error, model, file)) from None


def config_of(
    settings: SettingsFile, file: YamlFile, environ: Mapping[str, str], of_the_door: Iterable[Problem]
) -> Config:
    """The settings with their policies; raises ConfigError with all problems, those ``of_the_door`` among them."""
    settings = with_ca_paths(settings, file.path.parent)
    problems = [
        *of_the_door,
        *_references(settings, file),
        *_same_servers(settings, file),
        *_environment(settings, file, environ),
        *ca_file_problems(settings, file),
        *_of_depth(settings.auditor, file),
        *_audit_log(settings.audit_log, file),
        *_metrics(settings, file),
        *_tracing(settings.tracing, file),
    ]
    policies: dict[str, LoadedPolicy] = {}
    folder = file.path.parent / settings.policies_dir
    for name, tenant in settings.tenants.items():
        found = find_policy(tenant.policy, folder)
        if found is None:
            problems.append(
                file.problem(f"tenants.{name}.policy", f"no {tenant.policy}.yaml in {folder}, no such preset")
            )
            continue
        try:
            loaded = load_policy(found)
            idle = _idle_thresholds(settings.auditor, loaded)
            policies[tenant.policy] = replace(loaded, warnings=(*loaded.warnings, *idle))
        except PolicyError as error:
            problems += error.problems
    problems += _late_escalation(settings.auditor, policies, file)
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    fields: dict[str, Any] = {
        name: getattr(settings, name) for name in SettingsFile.model_fields if name != "policies_dir"
    }
    if settings.audit_log.path is not None:
        path = file.path.parent / settings.audit_log.path
        fields["audit_log"] = settings.audit_log.model_copy(update={"path": str(path)})
    return Config(**fields, policies=policies, policies_dir=folder)


def _references(settings: SettingsFile, file: YamlFile) -> Iterator[Problem]:
    owners: dict[str, str] = {}
    if not settings.upstreams:
        yield file.problem("upstreams", "expected at least one upstream")
    for name, tenant in settings.tenants.items():
        if tenant.upstream not in settings.upstreams:
            known = ", ".join(settings.upstreams)
            yield file.problem(f"tenants.{name}.upstream", f"there is no upstream {tenant.upstream!r}; known: {known}")
        for key in tenant.keys:
            owner = owners.setdefault(key.lower(), name)
            if owner != name:
                yield file.problem(f"tenants.{name}.keys", f"tenant {owner} has the same key")
    anonymous = settings.anonymous_tenant
    if anonymous is not None and anonymous not in settings.tenants:
        yield file.problem("anonymous_tenant", f"there is no tenant {anonymous!r}")
    for key, guard in settings.auditor.guards.items():
        yield from _of_backend(key, guard, file)


def _of_backend(key: str, guard: GuardSettings, file: YamlFile) -> Iterator[Problem]:
    backend = guard.backend
    if backend == "openai" and guard.base_url is None:
        yield file.problem(f"{key}.base_url", "required by backend openai: the URL of a server, ending in /v1")
    if backend != "openai" and guard.base_url is not None:
        yield file.problem(f"{key}.base_url", f"has no effect with backend {backend}")
    if backend != "openai" and guard.api_key_env is not None:
        yield file.problem(f"{key}.api_key_env", f"has no effect with backend {backend}")
    if backend != "openai" and (problem := no_such_built_in(guard.model)) is not None:
        yield file.problem(f"{key}.model", problem)
    if backend != "transformers" and guard.kv_cache_bytes is not None:
        yield file.problem(f"{key}.kv_cache_bytes", f"has no effect with backend {backend}")


def _same_servers(settings: SettingsFile, file: YamlFile) -> Iterator[Problem]:
    seen: dict[str, str] = {}
    for key, guard in settings.auditor.guards.items():
        for number, url in enumerate(guard.base_url or ()):
            place = f"{key}.base_url.{number}"
            # One server may serve two models, each with a name of its own.
            first = seen.setdefault(f"{URL(url.rstrip('/'))} {guard.model}", place)
            if first != place:
                yield file.problem(place, f"the same server as {first}: name it once")


def _of_depth(auditor: AuditorSettings, file: YamlFile) -> Iterator[Problem]:
    if auditor.escalate_at is not None and auditor.depth != "cascade":
        yield file.problem("auditor.escalate_at", f"has no effect with depth {auditor.depth}")
    if auditor.annotate_timeout_ms is None:
        return
    if auditor.depth == "label":
        yield file.problem("auditor.annotate_timeout_ms", "has no effect with depth label")
    elif auditor.annotate_timeout_ms < auditor.timeout_ms:
        yield file.problem(
            "auditor.annotate_timeout_ms",
            f"is below timeout_ms ({auditor.timeout_ms}), but is there to give annotations longer: raise or drop it",
        )


def _late_escalation(
    auditor: AuditorSettings, policies: Mapping[str, LoadedPolicy], file: YamlFile
) -> Iterator[Problem]:
    if auditor.escalate_at is None or auditor.depth != "cascade":
        return
    for name, loaded in policies.items():
        least = loaded.policy.thresholds.least
        if auditor.escalate_at > least:
            yield file.problem(
                "auditor.escalate_at",
                f"is above {least:g}, the lower threshold of policy {name}, which would then act on label reads alone; "
                "lower it, or leave it out",
            )


def _idle_thresholds(auditor: AuditorSettings, loaded: LoadedPolicy) -> Iterator[str]:
    """Warnings of thresholds that somebody wrote where no audit gives probabilities."""
    if auditor.depth != "annotate" or any(guard.backend != "openai" for guard in auditor.guards.values()):
        return
    for key in ("thresholds.potentially_harmful", "thresholds.harmful"):
        if key in loaded.written:
            why = "beside auditor.depth: annotate over HTTP, whose verdicts are certain of their level"
            yield f"{key} has no effect {why} ({loaded.origins[key]})"


def _audit_log(audit_log: AuditLogSettings, file: YamlFile) -> Iterator[Problem]:
    if audit_log.path is None:
        for key in sorted(audit_log.model_fields_set - {"path"}):
            yield file.problem(f"audit_log.{key}", "has no effect without audit_log.path")
        return
    path = file.path.parent / audit_log.path
    if path.is_dir():
        yield file.problem("audit_log.path", f"{path} is a folder: name a file in it")
    elif not path.parent.is_dir():
        yield file.problem("audit_log.path", f"there is no folder {path.parent}: make it")


def _metrics(settings: SettingsFile, file: YamlFile) -> Iterator[Problem]:
    metrics = settings.metrics
    if metrics.port is None:
        if "host" in metrics.model_fields_set:
            yield file.problem("metrics.host", "has no effect without metrics.port")
    elif metrics.port and metrics.port == settings.server.port:
        yield file.problem("metrics.port", "is server.port, where tenants ask: choose another")


def _tracing(tracing: TracingSettings, file: YamlFile) -> Iterator[Problem]:
    if tracing.endpoint is None:
        if "sample" in tracing.model_fields_set:
            yield file.problem("tracing.sample", "has no effect without tracing.endpoint")
    elif not otlp_is_installed():
        yield file.problem(
            "tracing.endpoint", "needs the extra `otel`: pip install '.[otel]' in a checkout of guardtrace-proxy"
        )


def otlp_is_installed() -> bool:
    """Whether the extra ``otel`` is there, less what it needs."""
    try:
        return find_spec("opentelemetry.exporter.otlp.proto.http") is not None
    except ModuleNotFoundError:
        return False


def _environment(settings: SettingsFile, file: YamlFile, environ: Mapping[str, str]) -> Iterator[Problem]:
    named = {f"upstreams.{name}.api_key_env": upstream.api_key_env for name, upstream in settings.upstreams.items()}
    named |= {f"{key}.api_key_env": guard.api_key_env for key, guard in settings.auditor.guards.items()}
    for key, variable in named.items():
        why = None if variable is None else key_problem(variable, environ)
        if why is not None:
            yield file.problem(key, why)


def key_problem(variable: str, environ: Mapping[str, str]) -> str | None:
    """Why the environment variable can't be used for a model server's key, if it can't. What is no name of a variable
    may be the key itself, which no message repeats."""
    if not VARIABLE.fullmatch(variable):
        return "expected the name of an environment variable, in which the key is: letters, digits and _"
    found = environ.get(variable)
    if not found:
        return f"the environment variable {variable} isn't set; set it, or leave the key out"
    if not found.isascii() or not found.isprintable():
        return f"the environment variable {variable} holds a line break, or another character that no header can carry"
    return None


def _not_yet(settings: ConfigFile, file: YamlFile) -> Iterator[Problem]:
    """Values whose feature isn't built."""
    refused = {
        "server.passthrough": ("passthrough", bool(settings.server.passthrough)),
    }
    for key, (what, is_used) in refused.items():
        if is_used:
            yield file.problem(key, f"{what} is not yet supported")
