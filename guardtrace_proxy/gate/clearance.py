"""How far a choice's text may leave: by its verdicts, and by modes that let it go before."""

from __future__ import annotations

from guardtrace_proxy.gate.tape import Tape, Waiting
from guardtrace_proxy.policy.schema import Mode, Policy
from guardtrace_proxy.wire.events import Phase, Segment

WEAKEST_FIRST = (Mode.MONITOR, Mode.LAG, Mode.HOLD)


class Modes:
    """The mode of each segment. ``lags``: some text may leave ahead of its verdict; ``all_hold``: all is held."""

    def __init__(self, policy: Policy) -> None:
        rules = {phase: policy.phase(phase.value) for phase in Phase}
        self._outside = {phase: each.mode for phase, each in rules.items()}
        self._max_lag = {phase: each.max_lag for phase, each in rules.items()}
        lags = [self._max_lag[phase] for phase, mode in self._outside.items() if mode is Mode.LAG]
        self.lags = bool(lags)
        self._max_lag_inside = min(lags, default=0)
        thinking, answer = self._outside[Phase.THINKING], self._outside[Phase.ANSWERING]
        # An inline block's end may never come: what looks like thinking may be all the answer there is.
        self._inside = thinking if thinking is Mode.WITHHOLD else max(thinking, answer, key=WEAKEST_FIRST.index)
        self.all_hold = {*self._outside.values(), self._inside} == {Mode.HOLD}

    def of(self, segment: Segment) -> Mode:
        """A phase's own mode; inside an inline thinking block the stricter of both."""
        return self._outside[segment.phase] if segment.close is None else self._inside

    def max_lag(self, segment: Segment) -> int:
        """How many tokens may be ahead of their verdict when it leaves, in mode ``lag``; the fewer inside a block."""
        return self._max_lag[segment.phase] if segment.close is None else self._max_lag_inside

    def enforces(self, segment: Segment) -> bool:
        """Whether verdicts on it are acted on."""
        return self.of(segment) in (Mode.HOLD, Mode.LAG)


class Clearance:
    """Tape offsets of one choice. Text up to ``clear`` may leave; up to ``settled`` nothing waits for a verdict.

    Between the two lies what leaves ahead of its verdict in mode ``lag``: never more than ``max_lag`` tokens, and never
    the end of the reply.
    """

    def __init__(self, modes: Modes) -> None:
        self.clear = 0
        self.settled = 0
        self.hits_were_seen = False
        """After a hit nothing leaves ahead of its verdict any more."""
        self._modes = modes
        self._ahead = 0

    def advance(self, tape: Tape) -> None:
        """Text has come."""
        if self._modes.all_hold:
            self.clear = self.settled = tape.judged
            return
        self.settled = max(self.settled, tape.judged)
        waiting = tape.waiting
        # Bisected, since this runs for every event and a slow auditor lets thousands of entries wait.
        for position in range(tape.behind(self.settled), len(waiting)):
            if self._modes.of(waiting[position].segment) in (Mode.HOLD, Mode.LAG):
                break
            self.settled = waiting[position].end
        self.clear = max(self.clear, self.settled)
        for position in range(tape.behind(self.clear), len(waiting)):
            entry = waiting[position]
            mode = self._modes.of(entry.segment)
            if mode is Mode.HOLD or (mode is Mode.LAG and not self._may_run_ahead(entry)):
                break
            self._ahead += entry.tokens if mode is Mode.LAG else 0
            self.clear = entry.end

    def recount(self, tape: Tape) -> None:
        """A verdict has come: tokens that it covers aren't ahead any more."""
        self._ahead = 0
        if self._modes.lags:
            for entry in tape.waiting[: tape.behind(self.clear)]:
                self._ahead += entry.tokens if self._modes.of(entry.segment) is Mode.LAG else 0
        self.advance(tape)

    def stop(self, released: int) -> None:
        """A verdict was acted on: from now on text waits for its verdict. So does what was clear ahead of its verdict
        and hasn't left yet."""
        self.hits_were_seen = True
        self.clear = max(self.settled, min(self.clear, released))

    def _may_run_ahead(self, entry: Waiting) -> bool:
        return not self.hits_were_seen and self._ahead + entry.tokens <= self._modes.max_lag(entry.segment)
