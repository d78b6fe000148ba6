"""``guardtrace.yaml`` for the middleware inside a model server: what the server has itself is refused, not ignored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import Field

from guardtrace_proxy.policy.errors import ConfigError, Problem
from guardtrace_proxy.policy.yaml_file import BadYaml, YamlFile, read_yaml
from guardtrace_proxy.server.config import Config, config_of, validated
from guardtrace_proxy.server.settings import ModelSettings, SettingsFile
from guardtrace_proxy.wire.dialects import BY_ROUTE

MODEL = "default"
"""The name under ``upstreams`` of the app itself."""
SERVED = (*BY_ROUTE, "/v1/models", "/healthz", "/readyz")
HAS_ITS_OWN = "has no effect inside a model server, which has its own: leave it out"


class InnerFile(SettingsFile):
    """The middleware's file as it is written."""

    upstreams: dict[str, ModelSettings] = Field({MODEL: ModelSettings()})


def load_inner_config(path: Path, environ: Mapping[str, str]) -> Config:
    """Read the middleware's guardtrace.yaml and every policy that it names; raises ConfigError with all problems."""
    try:
        file = read_yaml(path)
    except BadYaml as error:
        raise ConfigError([error.problem]) from None
    elsewhere = list(_taken_out(file))
    try:
        settings = validated(file, InnerFile)
    except ConfigError as error:
        raise ConfigError([*elsewhere, *error.problems]) from None
    return config_of(settings, file, environ, [*elsewhere, *_other_models(settings, file), *_passed(settings, file)])


def _taken_out(file: YamlFile) -> Iterator[Problem]:
    """What only a server of its own has, or a model server that is asked over HTTP: told, and taken out of the file."""
    sections = {"server": file.content.get("server")}
    upstreams = file.content.get("upstreams")
    if isinstance(upstreams, dict):
        sections |= {f"upstreams.{name}": settings for name, settings in upstreams.items()}
    for section, settings in sections.items():
        keys = ("host", "port", "drain_ms") if section == "server" else ("base_url", "ca_file", "retries")
        for key in keys:
            if isinstance(settings, dict) and key in settings:
                del settings[key]
                yield file.problem(f"{section}.{key}", HAS_ITS_OWN)


def _other_models(settings: InnerFile, file: YamlFile) -> Iterator[Problem]:
    for name in settings.upstreams:
        if name != MODEL:
            yield file.problem(
                f"upstreams.{name}", f"inside a model server there is one upstream, the server itself: name it {MODEL}"
            )


def _passed(settings: InnerFile, file: YamlFile) -> Iterator[Problem]:
    for number, path in enumerate(settings.server.passthrough):
        key = f"server.passthrough.{number}"
        if not path.startswith("/") or not path.isprintable() or any(mark in path for mark in "?#*{} "):
            yield file.problem(key, "expected the path of one route, as /v1/embeddings: no pattern, no query")
        elif path in SERVED:
            yield file.problem(key, f"{path} is served by the guard itself: leave it out")
