"""Reads tenants and policies again when their files change, or when told to by SIGHUP.

All or nothing: the new set takes the old one's place in one step, and if anything in the files is wrong, or something
else than tenants and policies has changed, the old set stays and the log says so. What runs keeps what it began with.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

import anyio
import anyio.to_thread
import structlog

from guardtrace_proxy.policy.errors import ConfigError, SettingsError
from guardtrace_proxy.server.config import Config

log = structlog.get_logger("guardtrace")

POLL_SECONDS = 1.0
CHANGEABLE = frozenset(("tenants", "anonymous_tenant", "policies", "policies_dir"))

Signature = tuple[tuple[str, int, int, int, int], ...]


class SettingsFiles:
    """``config`` is what was last read of the files, by ``read``, and could be used; ``known`` is how they looked then.

    ``known`` may be ahead of ``config`` where what came was refused."""

    def __init__(
        self, path: Path, config: Config, environ: Mapping[str, str], read: Callable[[Path, Mapping[str, str]], Config]
    ) -> None:
        self.config = config
        self._path = path
        self._environ = environ
        self._read = read
        self.known = self._seen = self.signature()

    def signature(self) -> Signature:
        """Of each file: where links lead, when it or its mode was changed, how long it is; raises OSError."""
        found = []
        for file in (self._path, *sorted(self.config.policies_dir.glob("*.yaml"))):
            try:
                seen = file.stat()
            except OSError:
                continue
            found.append((str(file), seen.st_ino, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_size))
        return tuple(found)

    def read(self) -> Config:
        """What the files say now; raises where it can't be used."""
        config = self._read(self._path, self._environ)
        others = _changed(self.config, config) - CHANGEABLE
        if others:
            raise _Refused(f"changing {', '.join(sorted(others))} takes a restart")
        return config

    def refresh(self, retry: bool) -> None:
        """Read the files if they changed, for a process that starts others; with ``retry`` also those that were refused
        before. What is refused leaves all as it is: a process that begins so sees a change, and says what is wrong."""
        with suppress(Exception):
            now = self.signature()
            if now == (self.known if retry else self._seen):
                return
            self._seen = now
            self.config, self.known = self.read(), now


class Reloader:
    """``use`` takes what ``files`` say after a change since they were read; ``told`` hears of each reload whether it is
    used."""

    def __init__(self, files: SettingsFiles, use: Callable[[Config], None], told: Callable[[bool], None]) -> None:
        self._files = files
        self._use = use
        self._told = told
        self._reloading = anyio.Lock()

    async def watch(self) -> None:
        """For as long as the server runs. SIGHUP is heard where this is the process's main thread."""
        async with anyio.create_task_group() as tasks:
            if hasattr(signal, "SIGHUP") and threading.current_thread() is threading.main_thread():
                tasks.start_soon(self._watch_signal)
            await self._watch_files()

    async def reload(self, *, again: bool = False) -> bool:
        """Read the files and use them, or say why not. False where they couldn't be read for now; that they still can't
        is said and told only once, so not where this is done ``again``."""
        async with self._reloading:
            try:
                config = await anyio.to_thread.run_sync(self._files.read)
                self._use(config)
            except Exception as error:  # whatever it is, it ends neither the watch nor the server
                may_pass = isinstance(error, OSError) or (isinstance(error, SettingsError) and error.may_pass)
                if not (may_pass and again):
                    log.error("settings not reloaded, the old ones stay", reason=_reason(error))
                    self._told(False)
                return not may_pass
            self._files.config = config
            self._told(True)
            log.info("settings reloaded", tenants=len(config.tenants), policies=sorted(config.policies))
            return True

    async def _watch_files(self) -> None:
        """A change counts once it has stood for a while: editors write files in pieces. What can't be read then is read
        again at each look."""
        before = self._files.known
        unread: Signature | None = None
        is_blind = False
        while True:
            await anyio.sleep(POLL_SECONDS)
            try:
                now = await anyio.to_thread.run_sync(self._files.signature)
            except Exception as error:  # a folder that is being swapped, no file free: it is there at another look
                if not is_blind:
                    log.warning("settings files can't be looked at, the next look may", reason=_reason(error))
                is_blind = True
                continue
            is_blind = False
            if now != self._files.known and now == before:
                if await self.reload(again=now == unread):
                    self._files.known = now
                else:
                    unread = now
            before = now

    async def _watch_signal(self) -> None:
        try:
            with anyio.open_signal_receiver(signal.SIGHUP) as received:
                async for _ in received:
                    await self.reload()
        finally:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # by default it would end the process


class _Refused(Exception):
    """The files are right, but can't be used while the server runs."""


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, (ConfigError, OSError, _Refused)) else type(error).__name__


def _changed(old: Config, new: Config) -> set[str]:
    return {field.name for field in fields(Config) if getattr(old, field.name) != getattr(new, field.name)}
