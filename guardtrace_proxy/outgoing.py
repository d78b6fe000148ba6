"""The HTTP session in which other servers are asked: upstream, auditor, and where images are fetched from.

It is aiohttp's own client: a second client's requests and responses around it cost more than the call itself.
"""

from __future__ import annotations

from collections.abc import Mapping

import aiohttp
import httpx
from aiohttp.abc import AbstractResolver
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.connector import Connection
from aiohttp.tracing import Trace

TROUBLE = (aiohttp.ClientError, OSError)
"""What a request, or the reading of its reply, may raise."""


class _Connector(aiohttp.TCPConnector):
    """Leaves alone a kept connection on which something came that nobody asked for: aiohttp (3.14) would give it to the
    next request as its reply, which may be another tenant's."""

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
    resolver: AbstractResolver | None = None,
    socket_factory: aiohttp.SocketFactoryType | None = None,
) -> aiohttp.ClientSession:
    """Open one; to be called in the event loop that will use it.

    It knows no proxies or keys of the environment, keeps no cookies, decompresses nothing and trusts the certificates
    that certifi lists. That no redirect is followed has to be said at each call (``allow_redirects=False``).
    """
    return aiohttp.ClientSession(
        connector=_Connector(
            limit=max_connections,
            keepalive_timeout=keepalive_seconds,
            ssl=httpx.create_ssl_context(trust_env=False),
            resolver=resolver,
            socket_factory=socket_factory,
        ),
        headers={"accept-encoding": "identity", "user-agent": "guardtrace-proxy", **headers},
        timeout=timeout,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
    )
