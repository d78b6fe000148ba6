"""The log's line of a request that was refused: ``request refused``. No text of the request is in it."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from guardtrace_proxy.server.errors import ApiError
from guardtrace_proxy.server.tenants import Tenant
from guardtrace_proxy.wire.dialects import BY_ROUTE

log = structlog.get_logger("guardtrace")

OTHER_ROUTES = frozenset({"/v1/models", "/healthz", "/readyz"})
KEYLESS_LINES = 10
KEYLESS_SECONDS = 10.0


class Refusals:
    """Whoever has a tenant's key gets a line a request, as each reply has one. What needs no key would fill the disk in
    a flood: of that ``KEYLESS_LINES`` in ``KEYLESS_SECONDS`` are told, and the others at level debug."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._window_ends = float("-inf")
        self._in_window = 0
        self._left_out = 0

    def say(self, error: ApiError, route: str, tenant: Tenant | None) -> None:
        """``tenant`` is None where it isn't known."""
        if error.is_logged:
            return
        name, key = (None, None) if tenant is None else (tenant.name, tenant.key)
        has_key = key is not None
        fields = {"status": error.status, "code": error.code_word, "tenant": name, "key": key, "route": _known(route)}
        if not has_key and not self._has_room():
            self._left_out += 1
            log.debug("request refused", **fields)
            return
        if not has_key and self._left_out:
            fields["left_out"], self._left_out = self._left_out, 0
        if error.status >= 500:
            log.warning("request refused", **fields)
        else:
            log.info("request refused", **fields)

    def _has_room(self) -> bool:
        now = self._clock()
        if now >= self._window_ends:
            self._window_ends, self._in_window = now + KEYLESS_SECONDS, 0
        self._in_window += 1
        return self._in_window <= KEYLESS_LINES


def _known(route: str) -> str:
    """A path that isn't served may hold any text."""
    return route if route in BY_ROUTE or route in OTHER_ROUTES else "other"
