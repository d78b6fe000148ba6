"""The proxy as a `guardtrace.yaml` sets it up, between model servers that a scenario scripts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import pytest
import yaml

from guardtrace_proxy.demo.serving import served
from guardtrace_proxy.gate import Decided
from guardtrace_proxy.images import ImageFetcher
from guardtrace_proxy.server.app import GuardTraceApp
from guardtrace_proxy.server.config import Config, load_config
from tests.cli.serving import ENVIRON
from tests.images.serving import LOOPBACK, Names, image, image_server, is_test_server, picture
from tests.ports import free_port
from tests.server.running import CHUNKS, Running
from tests.server.scripted import Script, Server, by_word, completion, judging, model_server
from tests.tls import private_authority
from tests.waiting import eventually

KEYS = {"KEY_A": "a", "KEY_B": "b"}
WAIT_SECONDS = 60
FINE = [completion("well then", "fine")]
JUDGING = judging(by_word)
PICTURE = [image(picture(size=(40, 30)))]


@dataclass
class Stage:
    """Two upstreams, two auditors, one more of each behind TLS with the file of their authority, an image server and two
    free ports, by the names that settings use for them; and what they answer."""

    names: dict[str, Any] = field(default_factory=dict)
    servers: dict[str, Server] = field(default_factory=dict)
    upstream: Script = lambda _: FINE
    auditor: Script = JUDGING
    images: Callable[[str], Iterable[bytes]] = lambda _: PICTURE
    stopping: list[threading.Thread] = field(default_factory=list)

    @property
    def asked(self) -> list[str]:
        """Which servers were asked, start probe included."""
        return sorted(name for name, server in self.servers.items() if server.requests)

    def reset(self) -> None:
        self.upstream, self.auditor, self.images = lambda _: FINE, JUDGING, lambda _: PICTURE
        for server in self.servers.values():
            server.requests.clear()


@contextmanager
def stage() -> Iterator[Stage]:
    set_up = Stage({"{port}": free_port(), "{other port}": free_port()})
    with ExitStack() as stack:
        ca_file = Path(stack.enter_context(TemporaryDirectory())) / "ca.pem"
        tls = private_authority(ca_file)
        set_up.names["{ca file}"] = str(ca_file)
        set_up.servers["{tls upstream}"] = stack.enter_context(model_server(lambda body: set_up.upstream(body), tls))
        set_up.servers["{tls auditor}"] = stack.enter_context(model_server(lambda body: set_up.auditor(body), tls))
        for name in ("{upstream}", "{other upstream}"):
            set_up.servers[name] = stack.enter_context(model_server(lambda body: set_up.upstream(body)))
        for name in ("{auditor}", "{other auditor}"):
            set_up.servers[name] = stack.enter_context(model_server(lambda body: set_up.auditor(body)))
        images = stack.enter_context(image_server(lambda path: set_up.images(path)))
        set_up.names |= {name: server.url for name, server in set_up.servers.items()} | {"{images}": images.url("/")}
        # The service makes its own fetcher from the settings; the only other thing is where names lead.
        fetcher = partial(ImageFetcher, resolver=Names(images_test=[LOOPBACK]), may_connect=is_test_server)
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr("guardtrace_proxy.server.service.ImageFetcher", fetcher)
        yield set_up
        for thread in set_up.stopping:
            thread.join()


@dataclass
class Site:
    """One `guardtrace.yaml` in a folder of its own, with two folders of policies."""

    stage: Stage
    folder: Path
    settings: dict[str, Any]
    decided: list[Decided] = field(default_factory=list)

    def load(self) -> Config:
        base = {
            "upstreams": {"default": {"base_url": "{upstream}"}, "other": {"base_url": "{other upstream}"}},
            "auditor": {"base_url": "{auditor}", "model": "guard", "depth": "annotate", "timeout_ms": 30_000},
            "tenants": {"default": {"policy": "test"}},
            "anonymous_tenant": "default",
            "logging": {"level": "error"},
        }
        for name, message in (("policies", "Stopped here."), ("rules", "Stopped by the rules.")):
            (self.folder / name).mkdir(exist_ok=True)
            policy = {"version": 1, "extends": "balanced", **CHUNKS, "messages": {"cut": message}}
            (self.folder / name / "test.yaml").write_text(yaml.safe_dump(policy), "utf-8")
        self.path.write_text(yaml.safe_dump(self._filled(_merged(base, self.settings))), "utf-8")
        return load_config(self.path, KEYS)

    @property
    def path(self) -> Path:
        return self.folder / "guardtrace.yaml"

    @contextmanager
    def serve(self) -> Iterator[Running]:
        app = GuardTraceApp(self.load(), environ=KEYS, observer=self.decided.append)
        serving = ExitStack()
        url = serving.enter_context(served(app))
        try:
            yield Running(url, self.stage.servers["{upstream}"], self.stage.servers["{auditor}"], app)
            # What still asks a server of the stage would be taken for the next scenario's.
            _until(lambda: app.service.probed is not None, "the probe didn't end")
        finally:
            # Stopping takes uvicorn two ticks, in which the next scenario may begin.
            self.stage.stopping.append(threading.Thread(target=serving.close))
            self.stage.stopping[-1].start()

    def _filled(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._filled(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [self._filled(inner) for inner in value]
        return self.stage.names.get(value, value) if isinstance(value, str) else value


def _merged(base: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    both = {key: _merged(base[key], more[key]) for key in base.keys() & more.keys() if isinstance(base[key], dict)}
    return {**base, **more, **both}


FORKING = """
import json, os, signal, sys
from guardtrace_proxy.cli.app import main
import guardtrace_proxy.auditor.openai
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for line in sys.stdin:
    config, log = json.loads(line)
    pid = os.fork()
    if pid == 0:
        said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1), os.dup2(said, 2)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        sys.argv = ["guardtrace", "serve", "--config", config]
        try:
            main()
        finally:
            os._exit(0)
    print(pid, flush=True)
"""
"""Runs `guardtrace serve` many times, importing it once."""


class Commands:
    """`guardtrace serve` in processes of their own."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", FORKING]
        pipe = subprocess.PIPE
        self._parent = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env={**ENVIRON, **KEYS})

    @contextmanager
    def serve(self, site: Site, urls: Iterable[str]) -> Iterator[None]:
        """Until the context ends, which waits for the process's end; begun as soon as one of ``urls`` is ready."""
        site.load()
        log = site.folder / "log.txt"
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        print(json.dumps([str(site.path), str(log)]), file=self._parent.stdin, flush=True)
        pid = int(self._parent.stdout.readline())
        try:
            _until(lambda: any(answers(url + "/readyz") for url in urls), log)
            yield
        finally:
            os.kill(pid, signal.SIGTERM)
            _until(lambda: not _lives(pid), log)

    def close(self) -> None:
        self._parent.communicate()


def answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False, timeout=30).status_code == 200
    except httpx.TransportError:
        return False


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _until(condition: Callable[[], bool], otherwise: str | Path) -> None:
    came_true = eventually(condition, WAIT_SECONDS)
    assert came_true, otherwise.read_text() if isinstance(otherwise, Path) else otherwise
