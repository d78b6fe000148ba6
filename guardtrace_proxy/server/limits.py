"""What each tenant may ask for: replies at once, requests and tokens a minute (``tenants.NAME.limits``).

Rates are token buckets: a minute's worth can be saved up and flows in evenly. Requests are taken before they run. How
many tokens a reply will have nobody knows before, so they are taken as they come, and the bucket may go into debt: the
next request then waits until it is paid.
"""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from guardtrace_proxy.server.errors import ApiError
from guardtrace_proxy.server.settings import LimitSettings

CONCURRENT_RETRY_SECONDS = 1.0
"""When a reply ends can't be foreseen."""


class Bucket:
    """Times are ``clock``'s seconds. The rate is given anew each time, since a reload may change it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._level = math.inf
        self._filled_at = clock()

    def wait(self, amount: int, per_minute: int) -> float:
        """Seconds until ``amount`` can be taken; 0: now."""
        self._fill(per_minute)
        return max(0.0, (amount - self._level) * 60 / per_minute)

    def take(self, amount: int, per_minute: int) -> None:
        """Take it, there or not."""
        self._fill(per_minute)
        self._level -= amount

    def _fill(self, per_minute: int) -> None:
        now = self._clock()
        self._level = min(self._level + (now - self._filled_at) * per_minute / 60, per_minute)
        self._filled_at = now


class _Counts:
    """What one tenant uses now, whatever its limits."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.running = 0
        self.requests = Bucket(clock)
        self.tokens = Bucket(clock)


class Use:
    """What one request takes of its tenant's limits."""

    def __init__(self, limits: LimitSettings, counts: _Counts) -> None:
        self._limits = limits
        self._counts = counts
        self._reply = 0
        self._ended = False
        counts.running += 1

    def prompt(self, texts: Iterable[str]) -> None:
        """The request was read; counted as replies are (UTF-8 bytes / 4, rounded up)."""
        self._take(sum(-(-len(text.encode("utf-8", "surrogatepass")) // 4) for text in texts))

    def reply(self, tokens: int) -> None:
        """``tokens`` of the reply have come until now."""
        self._take(tokens - self._reply)
        self._reply = tokens

    def end(self) -> None:
        """The client has its reply: its next request may come, whatever is still to be closed behind this one."""
        if not self._ended:
            self._ended = True
            self._counts.running -= 1

    def _take(self, tokens: int) -> None:
        if self._limits.tokens_per_minute is not None and tokens > 0:
            self._counts.tokens.take(tokens, self._limits.tokens_per_minute)


class Limits:
    """All tenants' counts, by name; a reload of the settings leaves them as they are."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._tenants: defaultdict[str, _Counts] = defaultdict(lambda: _Counts(clock))
        self.refused = Counter[tuple[str, str]]()
        """Requests by tenant and by the limit that they were too many for."""

    @contextmanager
    def request(self, tenant: str, limits: LimitSettings) -> Iterator[Use]:
        """Count a request while the context lasts; raises ApiError 429 where it is too many."""
        counts = self._tenants[tenant]
        why = _why_not(counts, limits)
        if why is not None:
            self.refused[tenant, why[0]] += 1
            raise _too_many(*why)
        if limits.requests_per_minute is not None:
            counts.requests.take(1, limits.requests_per_minute)
        use = Use(limits, counts)
        try:
            yield use
        finally:
            use.end()

    def running(self, tenant: str) -> int:
        """Requests of the tenant that are being answered."""
        return self._tenants[tenant].running if tenant in self._tenants else 0


def _why_not(counts: _Counts, limits: LimitSettings) -> tuple[str, str, float] | None:
    """The limit that one request more would be too many for: its key, in words, and the seconds until it isn't."""
    if limits.concurrent is not None and counts.running >= limits.concurrent:
        return "concurrent", f"{limits.concurrent:,} requests at once", CONCURRENT_RETRY_SECONDS
    rate = limits.requests_per_minute
    if rate is not None and (wait := counts.requests.wait(1, rate)):
        return "requests_per_minute", f"{rate:,} requests a minute", wait
    rate = limits.tokens_per_minute
    if rate is not None and (wait := counts.tokens.wait(1, rate)):
        return "tokens_per_minute", f"{rate:,} tokens a minute", wait
    return None


def _too_many(key: str, what: str, wait: float) -> ApiError:
    seconds = max(1, math.ceil(wait))
    return ApiError(
        429,
        f"This key's tenant may have {what} (tenants.*.limits.{key}). Try again in {seconds} s.",
        type="rate_limit_error",
        code="rate_limit_exceeded",
        headers=((b"retry-after", str(seconds).encode()),),
    )
