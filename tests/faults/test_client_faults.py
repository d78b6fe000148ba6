"""The client is killed, stopped, slow, writes garbage, half-closes: its upstream is closed and nothing is kept for it."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.cli.serving import ENVIRON
from tests.faults.peer import BULKY
from tests.faults.rig import SETTLE_SECONDS, Rig, rig
from tests.waiting import eventually

POLICY = "version: 1\nextends: monitor\n"
"""Large replies that nobody holds, so that what a client doesn't take is all that stays."""


@pytest.fixture(scope="module")
def running(tmp_path_factory) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("faults")
    with rig(folder) as built:
        (folder / "policies" / "test.yaml").write_text(POLICY)
        built.proxy.process.send_signal(signal.SIGHUP)
        assert eventually(lambda: "settings reloaded" in built.log(), SETTLE_SECONDS)
        yield built


@pytest.fixture(autouse=True)
def _settled(running: Rig) -> Iterator[None]:
    yield
    assert running.settles()
    assert running.ask("fine").is_fine


def request(model: str) -> bytes:
    content = {"model": model, "messages": [{"role": "user", "content": "Please help."}], "stream": True}
    body = json.dumps(content).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def port(running: Rig) -> int:
    return int(running.proxy.url.rpartition(":")[2])


def connect(running: Rig, buffer: int = 65_536) -> socket.socket:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    client.settimeout(20)
    client.connect(("127.0.0.1", port(running)))
    return client


def given_up(running: Rig) -> int:
    return int(running.upstream.get("/state")["given_up"])


CLIENT = """
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as client:
    client.sendall(sys.stdin.buffer.read())
    while client.recv(1000):
        print(flush=True)
"""


def client(running: Rig, model: str) -> subprocess.Popen[bytes]:
    """A process that reads a stream; its first bytes have come."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", CLIENT, str(port(running))]
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=ENVIRON)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(request(model))
    process.stdin.close()
    assert process.stdout.readline()
    return process


def test_killed_in_mid_stream(running):
    watch = running.watch()
    before = given_up(running)
    process = client(running, "endless")
    assert running.running == 1
    process.kill()
    process.wait(10)
    assert eventually(lambda: given_up(running) == before + 1, SETTLE_SECONDS)
    assert watch.logs("client left")
    assert watch.logs("reply", end="left")
    assert watch.counts("replies_total", end="left")


def test_stopped_in_mid_stream(running):
    watch = running.watch()
    before = given_up(running)
    process = client(running, "large")
    process.send_signal(signal.SIGSTOP)
    try:
        assert eventually(lambda: given_up(running) == before + 1, SETTLE_SECONDS)
        assert running.settles()
        assert watch.logs("client takes nothing")
        assert watch.counts("replies_total", end="left")
    finally:
        process.kill()
        process.wait(10)


def test_the_connection_of_a_client_that_takes_nothing_is_closed(running):
    assert eventually(lambda: running.connections == 0, SETTLE_SECONDS)
    with connect(running) as client:
        client.sendall(request("large"))
        client.recv(100)
        assert running.connections == 1
        assert eventually(lambda: running.connections == 0, 30)


def test_slow(running):
    """For some times its timeout it reads so little that no message of a megabyte would be taken within it."""
    with connect(running, 16_384) as client:
        client.sendall(request("bulky"))
        data = b""
        slow_until = time.monotonic() + 5
        while not data.endswith(b"0\r\n\r\n"):
            piece = client.recv(40_000)
            assert piece
            data += piece
            if time.monotonic() < slow_until:
                time.sleep(0.1)
    assert data.count(b"ballast") == BULKY
    assert b'"stop"' in data


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"\x00" * 70_000,
    ],
    ids=["TLS", "half a line", "length", "zeros"],
)
def test_garbage_is_refused_and_the_connection_closed(running, sent):
    with connect(running) as client:
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        data = b""
        try:
            while more := client.recv(1000):
                data += more
        except ConnectionResetError:
            pass
    assert data == b"" or data.startswith(b"HTTP/1.1 400 ")


def test_half_closed_behind_its_request(running):
    """A client that says that it will say no more has left, as far as servers of ASGI can tell."""
    watch = running.watch()
    before = given_up(running)
    with connect(running) as client:
        client.sendall(request("endless"))
        client.recv(100)
        client.shutdown(socket.SHUT_WR)
        assert eventually(lambda: given_up(running) == before + 1, SETTLE_SECONDS)
    assert watch.logs("client left")
    assert watch.counts("replies_total", end="left")


def test_half_closed_in_its_body(running):
    with connect(running) as client:
        client.sendall(request("fine")[:-10])
        client.shutdown(socket.SHUT_WR)
        while client.recv(1000):
            pass


def test_silent_in_its_body(running):
    watch = running.watch()
    with connect(running) as client:
        client.sendall(request("fine")[:-10])
        assert client.recv(1000).startswith(b"HTTP/1.1 408 ")
    assert watch.logs("request refused", status=408, level="info")
    assert watch.counts("errors_total", status="408")
