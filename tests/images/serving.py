"""An image server that follows a script, over a real socket, and names that lead to it."""

from __future__ import annotations

import io
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from aiohttp.abc import AbstractResolver, ResolveResult
from PIL import Image

HOST = "images.test"
LOOPBACK = "127.0.0.1"


def picture(kind: str = "PNG", size: tuple[int, int] = (6, 4), color: tuple[int, ...] = (1, 2, 3)) -> bytes:
    data = io.BytesIO()
    Image.new("RGB" if len(color) == 3 else "RGBA", size, color).save(data, kind)
    return data.getvalue()


def image(data: bytes, content_type: str = "image/png", **headers: object) -> bytes:
    """A reply of known length; an underscore in a header's name stands for a hyphen."""
    return reply(200, data, content_type=content_type, content_length=len(data), **headers)


def redirect(location: str, status: int = 302) -> bytes:
    return reply(status, location=location, content_length=0)


def reply(status: int, data: bytes = b"", **headers: object) -> bytes:
    lines = [f"HTTP/1.1 {status} X", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


@dataclass
class ImageServer:
    """``requests`` are (path, headers)."""

    port: int = 0
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    left: threading.Event = field(default_factory=threading.Event)
    """Set when a client closed before the script's end."""

    def url(self, path: str = "/x.png", host: str = HOST) -> str:
        return f"http://{host}:{self.port}{path}"

    @property
    def paths(self) -> list[str]:
        return [path for path, _ in self.requests]


@contextmanager
def image_server(
    script: Callable[[str], Iterable[bytes]], tls: ssl.SSLContext | None = None, address: str = LOOPBACK
) -> Iterator[ImageServer]:
    """Serve ``script``: from a path to the bytes of the reply, head and all."""
    server = ImageServer()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            line = self.rfile.readline().decode()
            if not line:
                return
            headers = {}
            while (header := self.rfile.readline().decode().strip()) != "":
                name, _, value = header.partition(":")
                headers[name.lower()] = value.strip()
            path = line.split()[1]
            server.requests.append((path, headers))
            try:
                for data in script(path):
                    self.wfile.write(data)
            except OSError:
                server.left.set()

    class Threaded(socketserver.ThreadingTCPServer):
        daemon_threads = True
        allow_reuse_address = True
        request_queue_size = 64

        def get_request(self) -> tuple[socket.socket, object]:
            connection, peer = super().get_request()
            return (tls.wrap_socket(connection, server_side=True) if tls else connection), peer

        def handle_error(self, request: object, client_address: object) -> None:
            """A client that left is no news."""

    with Threaded((address, 0), Handler) as tcp:
        server.port = tcp.server_address[1]
        threading.Thread(target=tcp.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield server
        finally:
            tcp.shutdown()


class Names(AbstractResolver):
    """Answers with what it was given; a list of lists is an answer for each time it is asked, the last one for good."""

    def __init__(self, **answers: list[str] | list[list[str]]) -> None:
        self._answers = {name.replace("_", "."): answer for name, answer in answers.items()}
        self.asked: list[str] = []

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        self.asked.append(host)
        if host not in self._answers:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        answer = self._answers[host]
        if isinstance(answer[0], list):
            answer = answer[min(self.asked.count(host), len(answer)) - 1]
        return [
            ResolveResult(
                hostname=host,
                host=str(address),
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in answer
        ]

    async def close(self) -> None:
        pass


def is_test_server(address: str) -> bool:
    """In place of the check for public addresses: one address of this machine, no others."""
    return address == LOOPBACK
