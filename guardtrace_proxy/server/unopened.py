"""A session that isn't open yet, or couldn't be opened: each of its audits tries to, until that works.

So opening is a part of the audit: it has that one's time, and where it fails the policy decides what becomes of the
reply. Where the auditor says that it can't, that counts with the breaker; where the time is over, it doesn't.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from guardtrace_proxy.auditor.prompt import Trace
from guardtrace_proxy.auditor.protocol import AuditorFailure, Depth, DoesNotFit, FailureKind, Session
from guardtrace_proxy.policy.levels import Verdict


class UnopenedSession:
    """Stands for the session that ``open_session`` opens."""

    capacity = 512
    """What a context of 4,608 tokens takes beside the longest query."""

    def __init__(self, open_session: Callable[[], Awaitable[Session]]) -> None:
        self._open = open_session
        self._session: Session | None = None

    @property
    def is_open(self) -> bool:
        """Whether an audit has opened it."""
        return self._session is not None

    async def judge(self, trace: Trace, depth: Depth) -> Verdict:
        """Judge it, after opening the session where nobody has."""
        if self._session is None:
            try:
                self._session = await self._open()
            except DoesNotFit as error:  # the reply has begun, so it's too late to refuse the request
                raise AuditorFailure(FailureKind.OUTGROWN, str(error)) from None
        return await self._session.judge(trace, depth)

    async def aclose(self) -> None:
        """Close what was opened."""
        if self._session is not None:
            await self._session.aclose()
