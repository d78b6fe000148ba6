"""Bytes as they pass: requests written by hand, and an upstream that keeps every byte it gets."""

from __future__ import annotations

import json
import re
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from tests.server.running import ask

BODY = json.dumps(ask()).encode()
QUIET_SECONDS = 0.2
"""After which nothing more is taken to come behind the replies that were waited for."""
LONGEST_SECONDS = 20
"""For a reply or a connection's end; the proxy leaves a silent connection open for longer."""


def request(
    *headers: bytes,
    line: bytes = b"POST /v1/chat/completions HTTP/1.1",
    body: bytes = BODY,
    framed: bytes | None = None,
) -> bytes:
    """``framed``: the headers that say where the body ends, in place of its length."""
    length = b"Content-Length: %d" % len(body) if framed is None else framed
    return b"\r\n".join([line, b"Host: proxy", *headers, *filter(None, [length]), b"", body])


@dataclass
class Came:
    """All that the server wrote on one connection."""

    data: bytes
    closed: bool

    @property
    def statuses(self) -> list[int]:
        return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", self.data)]


@contextmanager
def wire(url: str) -> Iterator[socket.socket]:
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), 30) as connection:
        yield connection


def written(url: str, *parts: bytes, pause: float = 0.05, replies: int = 1, closes: bool = False) -> Came:
    """Write the parts, each in a packet of its own, and `read_all`."""
    with wire(url) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number, part in enumerate(parts):
            if number:
                threading.Event().wait(pause)
            try:
                connection.sendall(part)
            except OSError:
                break  # refused already
        return read_all(connection, replies, closes=closes)


def read_all(connection: socket.socket, replies: int = 1, *, closes: bool = False) -> Came:
    """Until the server closes. Where it needn't, a short silence is the end once so many replies are whole."""
    data = b""
    try:
        while True:
            is_all = not closes and _whole_replies(data) >= replies
            connection.settimeout(QUIET_SECONDS if is_all else LONGEST_SECONDS)
            if not (piece := connection.recv(65_536)):
                break
            data += piece
    except TimeoutError:
        return Came(data, closed=False)
    except ConnectionResetError:
        pass
    return Came(data, closed=True)


def _whole_replies(data: bytes) -> int:
    """How many there are, each to its end; ``100 Continue`` is none."""
    count = 0
    while (end := data.find(b"\r\n\r\n")) >= 0:
        head, data = data[:end].lower(), data[end + 4 :]
        if head.startswith(b"http/1.1 100 "):
            continue
        if b"\r\ntransfer-encoding: chunked" in head:
            size = -1
            while size:
                line, _, data = data.partition(b"\r\n")
                size = int(line or b"1", 16)
                if len(data) < size + 2:
                    return count
                data = data[size + 2 :]
        elif length := re.search(rb"\r\ncontent-length: (\d+)", head):
            if len(data) < int(length[1]):
                return count
            data = data[int(length[1]) :]
        count += 1
    return count


@dataclass
class Taken:
    """``connections`` hold the bytes that came on each, in the order in which they were opened."""

    url: str = ""
    connections: list[bytearray] = field(default_factory=list)
    sockets: list[socket.socket] = field(default_factory=list)
    reply: Callable[[int], bytes] = lambda _: b""
    """To each whole request, by how many came on its connection before."""

    def begin(self, reply: Callable[[int], bytes]) -> None:
        """Forget what came, on connections that are closed by now, and answer so from now on."""
        for each in self.sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self.connections.clear()
        self.sockets.clear()
        self.reply = reply

    @property
    def data(self) -> bytes:
        return b"".join(map(bytes, self.connections))

    def heads(self) -> list[list[bytes]]:
        """Of each request its lines."""
        found = re.findall(rb"(?:POST|GET) \S+ HTTP/1\.1\r\n.*?\r\n\r\n", self.data, re.DOTALL)
        return [head.split(b"\r\n")[:-2] for head in found]

    def names(self) -> list[set[str]]:
        """Of each request its headers' names, as they were written."""
        return [{line.partition(b":")[0].decode().lower() for line in head[1:]} for head in self.heads()]


@contextmanager
def recording_upstream() -> Iterator[Taken]:
    """An upstream that answers each whole request and reads on."""
    taken = Taken()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            data = bytearray()
            taken.connections.append(data)
            taken.sockets.append(self.request)
            answered = 0
            try:
                while piece := self.request.recv(65_536):
                    data += piece
                    while _whole_requests(bytes(data)) > answered:
                        self.request.sendall(taken.reply(answered))
                        answered += 1
            except OSError:
                pass

    class Threaded(socketserver.ThreadingTCPServer):
        daemon_threads = True
        allow_reuse_address = True

    with Threaded(("127.0.0.1", 0), Handler) as tcp:
        taken.url = f"http://127.0.0.1:{tcp.server_address[1]}/v1"
        threading.Thread(target=tcp.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield taken
        finally:
            tcp.shutdown()


def _whole_requests(data: bytes) -> int:
    """How many requests there are, by their lengths and by nothing else."""
    count = 0
    while (end := data.find(b"\r\n\r\n")) >= 0:
        length = re.search(rb"\r\ncontent-length: *(\d+)", data[:end].lower())
        end += 4 + (int(length[1]) if length else 0)
        if len(data) < end:
            break
        count, data = count + 1, data[end:]
    return count
