"""Clients that hold a connection and never send a whole request: each is let go after a stated time, whatever it trickles."""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack

import httpx
import pytest

from tests.cli.serving import GUARDTRACE
from tests.faults.rig import SETTINGS, SETTLE_SECONDS, Rig, rig
from tests.faults.test_client_faults import connect, request
from tests.waiting import eventually

IDLE_SECONDS = 3.0
MANY = 300
SILENCE_SECONDS = SETTINGS["server"]["client_timeout_ms"] / 1000
BODY_SECONDS = 5 * SILENCE_SECONDS
FILES = 128
"""Fewer than there are connections in `test_many_at_once`: the proxy takes what the system lets it have."""
HARD = f"""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, ({FILES}, {FILES}))
"""
SOFT = f"""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, ({FILES}, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
"""
PROGRAM = f"""
import guardtrace_proxy.cli.serve as serve
serve.IDLE_SECONDS = {IDLE_SECONDS}
{GUARDTRACE}
"""
LINE = b"POST /v1/chat/completions HTTP/1.1\r\n"
ENDLESS = itertools.repeat(b"x")


@pytest.fixture(scope="module")
def running(tmp_path_factory) -> Iterator[Rig]:
    with rig(tmp_path_factory.mktemp("faults"), SOFT + PROGRAM) as built:
        yield built


@pytest.fixture(autouse=True)
def _settled(running: Rig) -> Iterator[None]:
    yield
    assert running.settles()
    assert running.ask("fine").is_fine


def until_closed(client: socket.socket, pieces: Iterable[bytes], pause: float = 0.1) -> tuple[bytes, float]:
    """Sends a piece after the other; what came until the server closed, and how long that took."""
    began, said = time.monotonic(), b""
    client.settimeout(pause)
    pieces = iter(pieces)
    while time.monotonic() - began < SETTLE_SECONDS:
        try:
            client.sendall(next(pieces, b""))
            if not (more := client.recv(65_536)):
                return said, time.monotonic() - began
            said += more
        except TimeoutError:
            continue
        except ConnectionError:
            return said, time.monotonic() - began
    raise AssertionError("the connection is still open")


@pytest.mark.parametrize(
    ("pieces", "seconds"),
    [
        ([], IDLE_SECONDS),
        (itertools.repeat(b"\r\n"), IDLE_SECONDS),
        ([LINE], SILENCE_SECONDS),
        (itertools.chain([LINE + b"x: "], ENDLESS), SILENCE_SECONDS),
        (itertools.chain([LINE], itertools.repeat(b"x: y\r\n")), SILENCE_SECONDS),
    ],
    ids=["nothing", "empty lines", "half a head", "a header that drips", "headers that drip"],
)
def test_no_whole_head(running, pieces, seconds):
    began = time.monotonic()  # the proxy may wait from the connection on, before the first piece
    with connect(running) as client:
        said, took = until_closed(client, pieces)
    assert said == b""
    assert time.monotonic() - began >= seconds - 0.2
    assert took < seconds + 2


def test_no_whole_head_behind_a_reply(running):
    with connect(running) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        reply = b""
        while not reply.endswith(b"}"):  # head and body may come one after the other
            reply += client.recv(1000)
        assert reply.startswith(b"HTTP/1.1 200 ")
        said, took = until_closed(client, [LINE])
    assert said == b""
    assert SILENCE_SECONDS - 0.2 <= took < SILENCE_SECONDS + 2


def test_a_body_that_drips(running):
    with connect(running) as client:
        said, took = until_closed(client, itertools.chain([request("fine")[:-40]], itertools.repeat(b" ", 39)), 0.2)
    assert said.startswith(b"HTTP/1.1 408 ")
    assert BODY_SECONDS - 0.2 <= took < BODY_SECONDS + 2


def test_a_body_that_drips_behind_its_refusal(running):
    head = b"POST /v1/unknown HTTP/1.1\r\nhost: x\r\ncontent-length: 10000\r\n\r\n"
    with connect(running) as client:
        said, took = until_closed(client, itertools.chain([head], ENDLESS))
    assert said.startswith(b"HTTP/1.1 404 ")
    assert took < IDLE_SECONDS + 2


@pytest.mark.parametrize(
    "head",
    [LINE + b"x: ", b"GET /", LINE + b"transfer-encoding: chunked\r\n\r\n0\r\nx: "],
    ids=["header", "path", "trailer"],
)
def test_a_head_without_end(running, head):
    before = running.memory
    flood = itertools.chain([head], itertools.repeat(b"x" * 65_536))
    with connect(running) as client:
        _, took = until_closed(client, flood, 0.001)
    assert took < SILENCE_SECONDS
    assert running.memory - before < 8 * 2**20


def test_a_head_that_is_too_large_is_told_so(running):
    with connect(running) as client:
        said, took = until_closed(client, [LINE + b"x: " + b"x" * 70_000])
    assert said.startswith(b"HTTP/1.1 431 ")
    assert took < SILENCE_SECONDS


def test_half_a_request_behind_one_that_runs_waits_for_its_reply(running):
    with connect(running) as client:
        client.sendall(request("slow") + LINE)
        said, took = until_closed(client, [])
    assert said.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert took < IDLE_SECONDS + 4


def test_many_at_once(running):
    """They count for nothing but an open file each, of which there are more than a process begins with; others are served."""
    before = running.open_files
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(running)) for _ in range(MANY)]
        for number, client in enumerate(clients):
            client.sendall([b"", LINE][number % 2])
        assert running.running == 0
        assert running.ask("fine").is_fine
        assert running.open_files >= before + MANY / 2  # those without a byte
        assert eventually(lambda: running.open_files <= before, SETTLE_SECONDS)


def test_more_than_open_files_allow(tmp_path):
    """What runs goes on: client's connections leave room for those to the upstream and to the auditor."""
    with rig(tmp_path, HARD + PROGRAM) as limited, ExitStack() as stack:
        with limited.asking("slow") as rest, limited.asking("slow-harmful") as other:
            for _ in range(MANY):
                stack.enter_context(connect(limited))
            fine, harmful = rest(), other()
        assert fine.is_fine
        assert harmful.is_cut
        assert "too many connections" in limited.log()
        assert FILES / 4 <= limited.open_files < FILES
        assert eventually(lambda: serves(limited), SETTLE_SECONDS)


def serves(proxy: Rig) -> bool:
    try:
        return proxy.ask("fine").is_fine
    except httpx.TransportError:
        return False
