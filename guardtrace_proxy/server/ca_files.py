"""The ``ca_file`` of upstreams and auditors: where each lies, and whether it can be used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from guardtrace_proxy.outgoing import BadCaFile, trusting
from guardtrace_proxy.policy.errors import Problem
from guardtrace_proxy.policy.yaml_file import YamlFile
from guardtrace_proxy.server.settings import AuditorSettings, GuardSettings, SettingsFile, UpstreamSettings

Asked = TypeVar("Asked", UpstreamSettings, AuditorSettings, GuardSettings)


def with_ca_paths(settings: SettingsFile, folder: Path) -> SettingsFile:
    """The settings with every ``ca_file`` as it lies from ``folder``, the settings file's own."""
    upstreams = {
        name: _with_path(each, folder) if isinstance(each, UpstreamSettings) else each
        for name, each in settings.upstreams.items()
    }
    auditor = _with_path(settings.auditor, folder)
    if auditor.fallback is not None:
        auditor = auditor.model_copy(update={"fallback": _with_path(auditor.fallback, folder)})
    return settings.model_copy(update={"upstreams": upstreams, "auditor": auditor})


def _with_path(settings: Asked, folder: Path) -> Asked:
    if settings.ca_file is None:
        return settings
    return settings.model_copy(update={"ca_file": str(folder / settings.ca_file)})


def ca_file_problems(settings: SettingsFile, file: YamlFile) -> Iterator[Problem]:
    """What is wrong about them, once they have their paths."""
    for name, each in settings.upstreams.items():
        if isinstance(each, UpstreamSettings) and each.ca_file is not None:
            yield from _problems(f"upstreams.{name}.ca_file", each.ca_file, [each.base_url], file)
    for key, guard in settings.auditor.guards.items():
        if guard.ca_file is None:
            continue
        if guard.backend != "openai":
            yield file.problem(f"{key}.ca_file", f"has no effect with backend {guard.backend}")
        elif guard.base_url is not None:
            yield from _problems(f"{key}.ca_file", guard.ca_file, guard.base_url, file)


def _problems(key: str, ca_file: str, urls: Sequence[str], file: YamlFile) -> Iterator[Problem]:
    if not any(urlsplit(url).scheme == "https" for url in urls):
        yield file.problem(key, "has no effect with http://: write https:// in base_url, or leave it out")
        return
    try:
        trusting(ca_file)
    except BadCaFile as error:
        yield file.problem(key, str(error))
