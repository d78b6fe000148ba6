"""Reads tenants and policies again when their files change, or when told to by SIGHUP.

All or nothing: the new set takes the old one's place in one step, and if anything in the files is wrong, or something
else than tenants and policies has changed, the old set stays and the log says so. What runs keeps what it began with.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path

import anyio
import anyio.to_thread
import structlog

from guardtrace_proxy.policy.errors import ConfigError
from guardtrace_proxy.server.config import Config

log = structlog.get_logger("guardtrace")

POLL_SECONDS = 1.0
CHANGEABLE = frozenset(("tenants", "anonymous_tenant", "policies", "policies_dir"))

Signature = tuple[tuple[str, int, int, int], ...]


class Reloader:
    """``config`` is what was read from ``path`` at start, by ``read``; ``use`` takes what came in its place.

    ``told`` hears of each reload whether what was read is used."""

    def __init__(
        self,
        path: Path,
        config: Config,
        environ: Mapping[str, str],
        read: Callable[[Path, Mapping[str, str]], Config],
        use: Callable[[Config], None],
        told: Callable[[bool], None],
    ) -> None:
        self._path = path
        self._config = config
        self._environ = environ
        self._read = read
        self._use = use
        self._told = told
        self._known = self._signature()
        self._reloading = anyio.Lock()

    async def watch(self) -> None:
        """For as long as the server runs. SIGHUP is heard where this is the process's main thread."""
        async with anyio.create_task_group() as tasks:
            if hasattr(signal, "SIGHUP") and threading.current_thread() is threading.main_thread():
                tasks.start_soon(self._watch_signal)
            await self._watch_files()

    async def reload(self) -> None:
        """Read the files and use them, or say why not."""
        async with self._reloading:
            try:
                config = await anyio.to_thread.run_sync(self._read, self._path, self._environ)
                others = _changed(self._config, config) - CHANGEABLE
                if others:
                    raise _Refused(f"changing {', '.join(sorted(others))} takes a restart")
            except Exception as error:  # whatever it is, it ends neither the watch nor the server
                is_told = isinstance(error, (ConfigError, OSError, _Refused))
                log.error(
                    "settings not reloaded, the old ones stay", reason=str(error) if is_told else type(error).__name__
                )
                self._told(False)
                return
            self._config = config
            self._use(config)
            self._told(True)
            log.info("settings reloaded", tenants=len(config.tenants), policies=sorted(config.policies))

    async def _watch_files(self) -> None:
        """A change counts once it has stood for a while: editors write files in pieces."""
        before = self._known
        while True:
            await anyio.sleep(POLL_SECONDS)
            now = await anyio.to_thread.run_sync(self._signature)
            if now != self._known and now == before:
                self._known = now
                await self.reload()
            before = now

    async def _watch_signal(self) -> None:
        with anyio.open_signal_receiver(signal.SIGHUP) as received:
            async for _ in received:
                await self.reload()

    def _signature(self) -> Signature:
        """Of each file: where links lead, when it was written, how long it is."""
        found = []
        for file in (self._path, *sorted(self._config.policies_dir.glob("*.yaml"))):
            try:
                seen = file.stat()
            except OSError:
                continue
            found.append((str(file), seen.st_ino, seen.st_mtime_ns, seen.st_size))
        return tuple(found)


class _Refused(Exception):
    """The files are right, but can't be used while the server runs."""


def _changed(old: Config, new: Config) -> set[str]:
    return {field.name for field in fields(Config) if getattr(old, field.name) != getattr(new, field.name)}
