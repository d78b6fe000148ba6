"""A session that couldn't be opened: each of its audits fails, so that the policy decides what becomes of the reply."""

from __future__ import annotations

from typing import NoReturn

from guardtrace_proxy.auditor.prompt import Trace
from guardtrace_proxy.auditor.protocol import AuditorFailure, Depth


class UnopenedSession:
    """Stands for the session of an auditor that broke down before the first audit."""

    capacity = 4096

    def __init__(self, failure: AuditorFailure) -> None:
        self._failure = failure

    async def judge(self, trace: Trace, depth: Depth) -> NoReturn:
        """Raise what went wrong."""
        raise self._failure

    async def aclose(self) -> None:
        """Nothing is held."""
