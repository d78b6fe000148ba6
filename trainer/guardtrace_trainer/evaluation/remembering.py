"""A session that is asked once about each prefix, however often a trace is replayed.

A verdict doesn't depend on thresholds or boundaries, only on what was shown: so a sweep pays for each audit once.
"""

from __future__ import annotations

from dataclasses import replace

from guardtrace_proxy.auditor.calibration import tempered
from guardtrace_proxy.auditor.prompt import Trace
from guardtrace_proxy.auditor.protocol import AuditorFailure, Depth, Session
from guardtrace_proxy.policy.levels import Verdict


class Remembering:
    """Stands before ``session``, which whoever opened it closes. ``asked`` counts the audits that were paid for.

    Label reads are scaled by ``temperature``. What is dropped of a trace that outgrows the context depends on how much
    of it was judged: that is left out of account here.
    """

    def __init__(self, session: Session, temperature: float = 1.0) -> None:
        self.capacity = session.capacity
        self.asked = 0
        self._session = session
        self._temperature = temperature
        self._known: dict[tuple[str, str, Depth], Verdict | AuditorFailure] = {}

    async def judge(self, trace: Trace, depth: Depth) -> Verdict:
        key = (trace.thinking, trace.answer, depth)
        if key not in self._known:
            self._known[key] = await self._ask(trace, depth)
        known = self._known[key]
        if isinstance(known, AuditorFailure):
            raise AuditorFailure(known.kind, str(known))
        return known

    async def aclose(self) -> None:
        """Nothing of its own to free."""

    async def _ask(self, trace: Trace, depth: Depth) -> Verdict | AuditorFailure:
        self.asked += 1
        try:
            verdict = await self._session.judge(trace, depth)
        except AuditorFailure as failure:
            return failure
        if depth is Depth.LABEL and verdict.probabilities is not None and self._temperature != 1:
            return replace(verdict, probabilities=tempered(verdict.probabilities, self._temperature))
        return verdict
