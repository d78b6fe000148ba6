"""The HTTP session in which other servers are asked: upstream, auditor, and where images are fetched from.

It is aiohttp's own client: a second client's requests and responses around it cost more than the call itself.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import aiohttp
import httpx
from aiohttp.abc import AbstractResolver
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.connector import Connection
from aiohttp.tracing import Trace

TROUBLE = (aiohttp.ClientError, OSError)
"""What a request, or the reading of its reply, may raise."""


class BadCaFile(Exception):
    """A file of certificate authorities that can't be used: which one, and why."""


def trusting(ca_file: str | None) -> ssl.SSLContext:
    """What checks servers' certificates: by the authorities in a PEM file alone, or without one by certifi's list.

    Raises:
        BadCaFile: the file can't be read, or holds no certificate.
    """
    return httpx.create_ssl_context(trust_env=False) if ca_file is None else _trusting_file(ca_file)


@cache  # A worker that takes another's place goes by what the settings were checked with, whatever the file is by then.
def _trusting_file(ca_file: str) -> ssl.SSLContext:
    expected = "expected PEM, with -----BEGIN CERTIFICATE----- before each authority's"
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except ssl.SSLError as error:  # before the others: it is an OSError, too
        raise BadCaFile(f"{ca_file} holds no certificate, or one that can't be read: {expected}") from error
    except (OSError, ValueError) as error:
        raise BadCaFile(f"{ca_file} can't be read: {getattr(error, 'strerror', None) or error}") from error
    if not context.cert_store_stats()["x509"]:
        raise BadCaFile(f"{ca_file} holds no certificate: {expected}")  # but a list of revoked ones, perhaps
    return context


class Arrivals(ResponseHandler):
    """A connection that says when something has come of the reply that is being read, or nothing more will.

    Neither callback may raise: they are called from the event loop's own.
    """

    on_arrival: Callable[[bytes], None] | None = None
    """Called when the reply has what came of these bytes; without any, something else happened to it."""
    takes: Callable[[bytes], bool] | None = None
    """May take the body of a chunk that comes by itself, which aiohttp then never sees. To be set while its parser
    stands between two chunks (`ends_between_chunks`) and nothing waits to be read; it is let go with the first bytes
    that aiohttp is given."""
    has_paused = False
    """aiohttp has ever stopped reading: from then on its parser may keep something back."""

    def data_received(self, data: bytes) -> None:
        if self.takes is not None:
            body = chunk_body(data)
            if body and self.takes(body):
                return
            self.takes = None
        super().data_received(data)
        # Without data it is aiohttp that goes on with what it left, in the middle of a read.
        if data and self.on_arrival is not None:
            self.on_arrival(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self.tell()

    def pause_reading(self) -> None:
        super().pause_reading()
        self.has_paused = True

    def resume_reading(self, *how: Any, **options: Any) -> None:
        # aiohttp resumes after each read, with half a dozen calls, whether it had paused or not. Where it ever has, its
        # parser may stop once more than the connection (3.14.5, a pause at a chunk's end), and each read has it go on.
        if self.has_paused:
            super().resume_reading(*how, **options)
            self._loop.call_soon(self.tell)

    def tell(self) -> None:
        """Have it looked at: bytes came, or something else happened to the reply."""
        if self.on_arrival is not None:
            self.on_arrival(b"")


def chunk_body(data: bytes) -> bytes:
    """The body of the one chunk, of the plainest form, that these bytes are to a parser between two chunks (RFC 9112,
    7.1); b"" where they are anything else, or more, or the last, or larger than a token's event is."""
    sizes = _SIZE_LINES.get(len(data))
    if sizes is None or not data.startswith(sizes) or not data.endswith(b"\r\n"):
        return b""
    return data[len(sizes[0]) : -2]


def ends_between_chunks(came: bytes, made: bytes) -> bool:
    """Whether a parser that made just this body of these bytes has taken them for one whole chunk, and so stands behind
    it. In the middle of another chunk it would have begun with their first line, as part of that one's body."""
    return made == chunk_body(came) and not made.startswith(came[: came.find(b"\r\n")])


def _size_lines(size: int) -> tuple[bytes, bytes]:
    return b"%x\r\n" % size, b"%X\r\n" % size


_SIZE_LINES = {len(_size_lines(size)[0]) + size + 2: _size_lines(size) for size in range(1, 2048)}
"""How a chunk of so many bytes, frame and all, begins: of each length there is one at most."""


class _Connector(aiohttp.TCPConnector):
    """Makes its connections ``Arrivals``.

    Leaves alone a kept connection on which something came that nobody asked for: aiohttp (3.14) would give it to the
    next request as its reply, which may be another tenant's.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        connection: type[ResponseHandler] = Arrivals
        self._factory = partial(connection, loop=self._loop)

    async def _get(self, key: ConnectionKey, traces: list[Trace]) -> Connection | None:
        while (connection := await super()._get(key, traces)) is not None:
            if connection.protocol is not None and not connection.protocol.should_close:
                return connection
            connection.close()
        return None


def open_session(
    headers: Mapping[str, str],
    timeout: aiohttp.ClientTimeout,
    *,
    max_connections: int,
    keepalive_seconds: float,
    ca_file: str | None = None,
    resolver: AbstractResolver | None = None,
    socket_factory: aiohttp.SocketFactoryType | None = None,
) -> aiohttp.ClientSession:
    """Open one; to be called in the event loop that will use it.

    It knows no proxies or keys of the environment, keeps no cookies, decompresses nothing and trusts the authorities in
    ``ca_file``, else those that certifi lists. That no redirect is followed has to be said at each call
    (``allow_redirects=False``). Raises BadCaFile.
    """
    return aiohttp.ClientSession(
        connector=_Connector(
            limit=max_connections,
            keepalive_timeout=keepalive_seconds,
            ssl=trusting(ca_file),
            resolver=resolver,
            socket_factory=socket_factory,
        ),
        headers={"accept-encoding": "identity", "user-agent": "guardtrace-proxy", **headers},
        timeout=timeout,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
    )
