"""Two proxies behind nginx, by the very file in `examples`, under a mixed load, while one of them is restarted or killed."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cli.serving import Serving, serving, write_config
from tests.faults.tools import NGINX, needs
from tests.ports import free_port
from tests.server.dialects import CASES, Case
from tests.server.scripted import SSE_HEAD, Script, by_word, held_up, judging, model_server
from tests.waiting import eventually

EXAMPLE = Path(__file__).parents[2] / "examples" / "nginx.conf"
MAIN = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/error.log info;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    include {folder}/guardtrace.conf;
}}
"""
WORDS = " ".join(f"word{number}" for number in range(30))
HARMFUL = WORDS.replace("word20", "HARM")
PAUSE_SECONDS = 0.05
READERS = 12
LONGEST_SECONDS = 60.0
CUT = {
    "chat": b'"content_filter"',
    "completions": b'"content_filter"',
    "responses": b'"content_filter"',
    "messages": b'"refusal"',
}

pytestmark = needs(NGINX, "nginx", "nginx-light")


def case_of(body: dict[str, Any]) -> Case:
    """Whose request it is: only one API has each of these keys."""
    key = next(key for key in ("input", "prompt", "max_tokens", "messages") if key in body)
    names = {"input": "responses", "prompt": "completions", "max_tokens": "messages", "messages": "chat"}
    return next(case for case in CASES if case.name == names[key])


def slowly(body: dict[str, Any]) -> Iterator[bytes]:
    """An upstream that takes a second and a half, whether it streams or not."""
    case, thinking = case_of(body), HARMFUL if "harm" in json.dumps(body) else WORDS
    if not body["stream"]:
        time.sleep(len(WORDS.split()) * PAUSE_SECONDS)
        yield case.whole(thinking, "Fine.")
        return
    yield SSE_HEAD
    for frame in case.frames(thinking, "Fine."):
        yield frame
        time.sleep(PAUSE_SECONDS)


@dataclass
class Outcome:
    case: Case
    stream: bool
    harmful: bool
    status: int = 0
    data: bytes = b""
    is_whole: bool = False

    @property
    def is_right(self) -> bool:
        """The reply of the model, or a cut in good order, and HTTP's own end."""
        return self.is_whole and self.says_all

    @property
    def says_all(self) -> bool:
        """Whether nothing is wrong or missing but HTTP's own end."""
        if self.status != 200 or b"HARM" in self.data:
            return False
        if self.harmful:
            return CUT[self.case.name] in self.data
        frames = b"".join(self.case.frames(WORDS, "Fine."))
        return self.data == (frames if self.stream else self.case.whole(WORDS, "Fine.").partition(b"\r\n\r\n")[2])

    @property
    def is_seen_to_be_broken(self) -> bool:
        """Neither HTTP nor the API says that it is the end."""
        ends = (b"[DONE]", b"message_stop", b"response.completed", b"response.incomplete")
        return self.status == 200 and not self.is_whole and not any(end in self.data for end in ends)


@dataclass
class Site:
    url: str
    first: Serving
    second: Serving
    restarted: Callable[[], Serving]
    """The first one, once it has ended, on its old port."""
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    """By request id."""

    def lines(self, proxy: Serving) -> dict[str, dict[str, Any]]:
        """By request id: what a proxy logged at the end of each of its replies."""
        lines = [json.loads(line) for line in proxy.log.read_text().splitlines() if line.startswith("{")]
        return {line["request_id"]: line for line in lines if line["event"] == "reply"}

    async def load(self, seconds: float) -> None:
        """A mixed load: each API, streaming and not, benign and harmful."""
        kinds = itertools.cycle(itertools.product(CASES, (True, True, False), (False, True, False)))
        until = time.monotonic() + seconds
        limits = httpx.Limits(max_connections=READERS)
        async with httpx.AsyncClient(trust_env=False, timeout=LONGEST_SECONDS, limits=limits) as client:
            await asyncio.gather(*(self._read(client, kinds, until) for _ in range(READERS)))

    async def _read(self, client: httpx.AsyncClient, kinds: Iterator[tuple[Case, bool, bool]], until: float) -> None:
        while time.monotonic() < until:
            case, stream, harmful = next(kinds)
            number = str(len(self.outcomes))
            outcome = self.outcomes[number] = Outcome(case, stream, harmful)
            body = case.ask("harm" if harmful else "help", stream=stream)
            headers = {**case.headers, "x-request-id": number}
            async with client.stream("POST", self.url + "/v1" + case.path, json=body, headers=headers) as reply:
                outcome.status = reply.status_code
                try:
                    async for piece in reply.aiter_raw():
                        outcome.data += piece
                    outcome.is_whole = True
                except httpx.RemoteProtocolError:
                    pass

    def under_load(self, seconds: float, meanwhile: Callable[[], object]) -> None:
        """Load for so long, and something that happens to the proxies in it."""

        async def both() -> None:
            await asyncio.gather(self.load(seconds), asyncio.to_thread(meanwhile))

        asyncio.run(both())


@contextmanager
def nginx(folder: Path, *proxies: int) -> Iterator[str]:
    port = free_port()
    text = EXAMPLE.read_text("utf-8")
    places = {
        "listen 8000": f"listen 127.0.0.1:{port}",
        "127.0.0.1:8081": f"127.0.0.1:{proxies[0]}",
        "127.0.0.1:8082": f"127.0.0.1:{proxies[1]}",
    }
    for old, new in places.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    (folder / "guardtrace.conf").write_text(text, "utf-8")
    (folder / "main.conf").write_text(MAIN.format(folder=folder), "utf-8")
    assert NGINX is not None
    process = subprocess.Popen([NGINX, "-p", folder, "-c", folder / "main.conf", "-e", folder / "error.log"])
    url = f"http://127.0.0.1:{port}"
    try:
        assert eventually(lambda: _answers(url), 20), (folder / "error.log").read_text()
        yield url
    finally:
        process.terminate()
        process.wait(10)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).status_code == 404
    except httpx.TransportError:
        return False


@contextmanager
def site(folder: Path, script: Script = slowly) -> Iterator[Site]:
    with ExitStack() as stack:
        upstream = stack.enter_context(model_server(script))
        auditor = stack.enter_context(model_server(judging(by_word)))
        config = write_config(folder, upstream.url, auditor.url)
        ports = free_port(), free_port()
        first, second = (stack.enter_context(serving(config, port=port)) for port in ports)
        url = stack.enter_context(nginx(folder, *ports))
        yield Site(url, first, second, lambda: stack.enter_context(serving(config, port=ports[0])))


def test_nothing_but_the_api_is_served(tmp_path):
    with nginx(tmp_path, free_port(), free_port()) as url:
        for path in ("/healthz", "/readyz", "/metrics", "/"):
            assert httpx.get(url + path, trust_env=False).status_code == 404
        assert httpx.get(url + "/v1/models", trust_env=False).status_code == 502


@pytest.mark.slow
def test_a_restart_costs_no_reply(tmp_path):
    """SIGTERM: what runs there ends, what comes next goes to the other, and then to both again."""
    with site(tmp_path) as running:
        seen: dict[str, set[str]] = {}

        def first() -> set[str]:
            return set(running.lines(running.first))

        def restart() -> None:
            time.sleep(4)
            seen["before"] = first()
            assert running.first.stop() == 0
            assert "shutting down" in running.first.log.read_text()
            seen["drained"] = first() - seen["before"]
            running.restarted()
            known = first()
            assert eventually(lambda: first() - known, 30)
            seen["after"] = first() - known

        running.under_load(45, restart)
        wrong = {key: outcome for key, outcome in running.outcomes.items() if not outcome.is_right}
        assert wrong == {}
        assert "ended replies that still ran" not in running.first.log.read_text()
        lines = [*running.lines(running.first).values(), *running.lines(running.second).values()]
        assert len(lines) == len(running.outcomes)
        assert all(line["end"] == "whole" for line in lines)
        assert all(seen.values()), seen


@pytest.mark.slow
def test_one_that_is_killed_breaks_its_streams_off_and_no_other(tmp_path):
    with site(tmp_path) as running:

        def kill() -> None:
            time.sleep(4)
            running.first.stop(signal.SIGKILL)

        running.under_load(10, kill)
        # What was said to its end leaves a moment before the connection's end, and may be killed in between.
        wrong = {key: outcome for key, outcome in running.outcomes.items() if not outcome.says_all}
        assert 0 < len(wrong) <= READERS
        assert all(outcome.stream and outcome.is_seen_to_be_broken for outcome in wrong.values()), wrong
        assert wrong.keys().isdisjoint(running.lines(running.second))


@pytest.mark.slow
def test_events_pass_as_they_come(tmp_path):
    """Not gathered in nginx: the first event is there before the model has said more."""
    end = threading.Event()
    frames = CASES[0].frames(WORDS, "Fine.")
    with site(tmp_path, held_up(frames, end)) as running:
        body = CASES[0].ask()
        with httpx.stream(
            "POST", running.url + "/v1/chat/completions", json=body, trust_env=False, timeout=20
        ) as reply:
            assert reply.headers["content-type"].startswith("text/event-stream")
            assert "x-accel-buffering" not in reply.headers  # for nginx alone
            pieces = reply.iter_raw()
            first = next(pieces)
            end.set()
            assert first + b"".join(pieces) == b"".join(frames)
