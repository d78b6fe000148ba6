"""`guardtrace serve` that is told to stop: what still runs after `server.drain_ms` is ended in order, and the process ends."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.cli.serving import Serving, serving, write_config
from tests.server.scripted import DONE, SSE_HEAD, by_word, chunk, judging, model_server
from tests.waiting import eventually

ASK = {"model": "m", "messages": [{"role": "user", "content": "Please help."}]}
BEGINNING = chunk({"role": "assistant", "content": "one two three four five six seven eight "})
LAST_SECONDS = 5


class Hung:
    """Sends what it is given, then nothing."""

    def __init__(self, *sent: bytes) -> None:
        self.sent = sent
        self.is_reached = threading.Event()
        self.let_go = threading.Event()

    def __call__(self, _: dict[str, Any]) -> Iterator[bytes]:
        yield from self.sent
        self.is_reached.set()
        self.let_go.wait(60)


@contextmanager
def hung(folder: Path, upstream: Hung, auditor: Any = None, **server: int) -> Iterator[Serving]:
    with model_server(upstream) as model, model_server(auditor or judging(by_word)) as guard:
        settings = {"port": 0, "drain_ms": 300, "keepalive_ms": 0, **server}
        try:
            with serving(write_config(folder, model.url, guard.url, server=settings)) as running:
                yield running
        finally:
            upstream.let_go.set()


def connection(url: str) -> socket.socket:
    address = urlsplit(url)
    return socket.create_connection((address.hostname, address.port))


def in_a_thread(ask: Callable[[], httpx.Response]) -> Callable[[], httpx.Response]:
    """Ask in a thread; what it returns waits for the reply."""
    replies: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: replies.append(ask()))
    thread.start()

    def reply() -> httpx.Response:
        thread.join(60)
        return replies[0]

    return reply


def post(running: Serving, **more: Any) -> Callable[[], httpx.Response]:
    """Ask for a completion in a thread."""
    return in_a_thread(
        lambda: httpx.post(running.url + "/v1/chat/completions", json={**ASK, **more}, trust_env=False, timeout=60)
    )


def lines(running: Serving, event: str) -> list[dict[str, Any]]:
    """Of the log."""
    found = [json.loads(line) for line in running.log.read_text().splitlines() if line.startswith("{")]
    return [line for line in found if line["event"] == event]


def test_a_stream_that_still_runs_is_broken_off_in_order(tmp_path):
    upstream = Hung(SSE_HEAD, BEGINNING, chunk({"content": "nine ten"}))
    with hung(tmp_path, upstream) as running:
        reply = post(running, stream=True)
        assert upstream.is_reached.wait(20)
        began = time.monotonic()
        assert running.stop() == 0
        assert 0.3 <= time.monotonic() - began < LAST_SECONDS
        events = [json.loads(line[6:]) for line in reply().text.splitlines() if line.startswith("data: ")]
    assert "shutting down" in events[-1]["error"]["message"]
    said = "".join(event["choices"][0]["delta"].get("content", "") for event in events[:-1])
    assert said == "one two three four five six seven eight nine ten"
    assert [line["replies"] for line in lines(running, "ended replies that still ran")] == [1]
    assert [line["end"] for line in lines(running, "reply")] == ["broken_off"]


def test_tokens_that_ran_ahead_of_their_text_are_judged_too(tmp_path):
    """A server that keeps text back (a tool call, a stop string) sends their logprobs ahead of it."""
    ahead = {"content": [{"token": token, "logprob": -0.1} for token in ("HA", "RM")]}
    frame = json.loads(chunk({})[6:])
    frame["choices"][0]["logprobs"] = ahead
    upstream = Hung(SSE_HEAD, BEGINNING, b"data: " + json.dumps(frame).encode() + b"\n\n")
    with hung(tmp_path, upstream) as running:
        reply = post(running, stream=True)
        assert upstream.is_reached.wait(20)
        time.sleep(0.5)
        assert running.stop() == 0
        assert "one two three" in reply().text
        assert '"HA"' not in reply().text
        assert "stopped by policy" in reply().text


@pytest.mark.parametrize("half_an_event", [b"", b'data: {"id": "chatcmpl-7", "choi'])
def test_what_could_have_become_a_tag_is_judged_and_leaves(tmp_path, half_an_event):
    upstream = Hung(SSE_HEAD, BEGINNING, chunk({"content": "if a <"}) + half_an_event)
    with hung(tmp_path, upstream) as running:
        reply = post(running, stream=True)
        assert upstream.is_reached.wait(20)
        time.sleep(0.5)
        began = time.monotonic()
        assert running.stop() == 0
        assert time.monotonic() - began < LAST_SECONDS
        assert "if a <" in reply().text
        assert "shutting down" in reply().text


def test_what_no_verdict_covers_stays_held(tmp_path):
    def never(_: dict[str, Any]) -> Iterable[bytes]:
        upstream.let_go.wait(60)
        return []

    upstream = Hung(SSE_HEAD, BEGINNING)
    with hung(tmp_path, upstream, never) as running:
        reply = post(running, stream=True)
        assert upstream.is_reached.wait(20)
        began = time.monotonic()
        assert running.stop() == 0
        assert time.monotonic() - began < LAST_SECONDS + 5
        assert "three" not in reply().text
        # The audit ran out of time, which is a cut, and ends as any.
        assert "could not be checked" in reply().text
        assert "shutting down" not in reply().text
        assert reply().text.endswith(DONE.decode())


@pytest.mark.parametrize("streamed", [True, False])
def test_a_reply_that_hasnt_begun_is_refused(tmp_path, streamed):
    upstream = Hung()
    with hung(tmp_path, upstream) as running:
        reply = post(running, stream=streamed)
        assert upstream.is_reached.wait(20)
        assert running.stop() == 0
        assert reply().status_code == 503
        assert reply().json()["error"]["code"] == "shutting_down"
        assert reply().headers["retry-after"] == "1"


def test_a_body_that_still_comes_is_refused(tmp_path):
    with hung(tmp_path, Hung()) as running, connection(running.url) as client:
        client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
        time.sleep(0.3)
        assert running.stop() == 0
        client.settimeout(30)
        head, _, body = b"".join(iter(lambda: client.recv(65_536), b"")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert json.loads(body)["error"]["code"] == "shutting_down"


def test_a_list_of_models_that_still_comes_is_refused(tmp_path):
    upstream = Hung()
    with hung(tmp_path, upstream) as running:
        replies = in_a_thread(lambda: httpx.get(running.url + "/v1/models", trust_env=False, timeout=60))
        assert upstream.is_reached.wait(20)
        assert running.stop() == 0
        assert replies().status_code == 503
        assert replies().json()["error"]["code"] == "shutting_down"


def test_a_stream_that_has_only_comments_ends_with_an_error(tmp_path):
    upstream = Hung()
    with hung(tmp_path, upstream, keepalive_ms=50) as running:
        reply = post(running, stream=True)
        assert upstream.is_reached.wait(20)
        time.sleep(0.3)
        assert running.stop() == 0
        lines = [line for line in reply().text.splitlines() if line.startswith("data: ")]
    assert [json.loads(line[6:])["error"]["code"] for line in lines] == ["shutting_down"]


def test_a_client_that_takes_nothing_doesnt_keep_the_process_alive(tmp_path):
    frame = chunk({"reasoning": "x"}, ballast=[7] * 20_000)
    upstream = Hung(SSE_HEAD, *[frame] * 300)
    with hung(tmp_path, upstream) as running:
        policy = (tmp_path / "policies" / "test.yaml").read_text() + "thinking: {mode: monitor}\n"
        (tmp_path / "policies" / "test.yaml").write_text(policy)
        running.process.send_signal(signal.SIGHUP)
        assert eventually(lambda: "settings reloaded" in running.log.read_text())
        body = json.dumps({**ASK, "stream": True}).encode()
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
            client.connect(("127.0.0.1", int(running.url.rpartition(":")[2])))
            head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
            client.sendall(head.encode() + body)
            time.sleep(1)
            began = time.monotonic()
            assert running.stop() == 0
            assert time.monotonic() - began < LAST_SECONDS + 8
    assert [line["end"] for line in lines(running, "reply")] == ["left"]
