"""The audit of a reply whose beginning stands in the request: each audit sees it before what the model writes."""

from __future__ import annotations

from guardtrace_proxy.auditor.prompt import Trace
from guardtrace_proxy.auditor.protocol import Depth, DoesNotFit, Session
from guardtrace_proxy.policy.levels import Verdict
from guardtrace_proxy.wire.prefill import Opening

LEAST_ROOM_BYTES = 64
"""Bytes that an audit must still take beside the beginning."""


class ContinuedSession:
    """Another session, which is shown the beginning too. The first audit takes it whole, since nobody has judged it."""

    def __init__(self, session: Session, opening: Opening, field: str) -> None:
        """Raises DoesNotFit where the beginning leaves no room; ``field`` is the request's."""
        self.capacity = session.capacity - len((opening.thinking + opening.answer).encode())
        if self.capacity < LEAST_ROOM_BYTES:
            raise DoesNotFit(field, "the beginning of the reply is longer than the auditor's context: shorten it")
        self._session = session
        self._opening = opening
        self._judged = False

    async def judge(self, trace: Trace, depth: Depth) -> Verdict:
        """Judge the beginning with what follows it."""
        thinking, answer = self._opening.thinking, self._opening.answer
        # Text that was let go without a verdict (on_auditor_failure: release) went together with the beginning.
        judged = self._judged or trace.judged_thinking > 0 or trace.judged_answer > 0
        whole = Trace(
            thinking + trace.thinking,
            answer + trace.answer,
            judged_thinking=len(thinking) + trace.judged_thinking if judged else 0,
            judged_answer=len(answer) + trace.judged_answer if judged else 0,
        )
        verdict = await self._session.judge(whole, depth)
        self._judged = True
        return verdict

    async def aclose(self) -> None:
        """Close the session behind it."""
        await self._session.aclose()
