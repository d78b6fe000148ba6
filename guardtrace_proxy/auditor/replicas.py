"""Several auditors that do the same work, as one: a stream stays with one of them, another takes over at need.

Affinity: rendezvous hashing (highest random weight, Thaler and Ravishankar 1998) says which replica a stream has. So
the audits of one stream, and the choices of one request, find what was read before, and a replica that goes takes only
its own streams with it.

Moving on: where a replica fails (``MOVES_ON``), the same call opens the session on the next one, and that judges the
whole trace. An audit asks each once at most, those that are left out last. The stream then stays where it is.

Health: a replica that fell is left out for a pause that grows. Then one stream that belongs there tries it again, with
its own audit, since a server may list its models while its engine hangs.

Silence: a replica that takes connections and never answers would use up the caller's time. When half of what is left of
it has passed without a reply of that replica, to this audit or any other, the next one is asked as well, and the first
verdict counts. The silent one isn't given up until then, so a slow audit loses nothing.

An auditor with a fallback is such a pair too, but for three things, since the second may be another model: all streams
belong to the first (``in_order``), go back to it as soon as it answers again, and what the second answers doesn't leave
out a first that refused it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from secrets import token_hex

import anyio

from guardtrace_proxy.auditor.health import FALLS_AT_ONCE, FALLS_IF_ANOTHER_ANSWERS, MOVES_ON, Replica
from guardtrace_proxy.auditor.prompt import Query, Trace
from guardtrace_proxy.auditor.protocol import (
    Auditor,
    AuditorError,
    AuditorFailure,
    Depth,
    DoesNotFit,
    FailureKind,
    Measured,
    Session,
    others_are_broken,
)
from guardtrace_proxy.policy.levels import Verdict


def ranked(names: Sequence[str], stream: str) -> list[str]:
    """The replicas' names in the order in which a stream wants them."""
    return sorted(names, key=lambda name: (_weight(name, stream), name), reverse=True)


def _weight(name: str, stream: str) -> bytes:
    return blake2b(f"{name}\0{stream}".encode("utf-8", "surrogatepass"), digest_size=16).digest()


class ReplicatedAuditor:
    """Auditors that share the streams. See :class:`guardtrace_proxy.auditor.protocol.Auditor`."""

    def __init__(
        self,
        replicas: Mapping[str, Auditor],
        clock: Callable[[], float] = anyio.current_time,
        *,
        in_order: bool = False,
    ) -> None:
        """``replicas`` by the names that logs call them, at least one; set up alike, or ``in_order`` of preference."""
        self.in_order = in_order
        self._replicas = {name: Replica(name, auditor, clock) for name, auditor in replicas.items()}
        self.clock = clock
        self.name = next(iter(replicas.values())).name
        self.escalate_at: float | None = None

    @property
    def warnings(self) -> tuple[str, ...]:
        """All that any of them has; some are found out by the first audits."""
        return tuple(
            dict.fromkeys(warning for replica in self._replicas.values() for warning in replica.auditor.warnings)
        )

    async def start(self) -> None:
        errors: list[AuditorError] = []

        async def start_one(auditor: Auditor) -> None:
            try:
                await auditor.start()
            except AuditorError as error:
                errors.append(error)

        auditors = [replica.auditor for replica in self._replicas.values()]
        async with anyio.create_task_group() as group:
            for auditor in auditors:
                group.start_soon(start_one, auditor)
        if errors:
            await self.aclose()
            raise errors[0]
        calibrated = [auditor.escalate_at for auditor in auditors if auditor.escalate_at is not None]
        self.escalate_at = min(calibrated, default=None)

    async def open(self, query: Query) -> ReplicatedSession:
        stream = query.stream or token_hex(8)
        failure: AuditorFailure | None = None
        for replica in self.order(stream):
            try:
                with others_are_broken():
                    session = await replica.auditor.open(query)
                return ReplicatedSession(self, stream, query, replica, session)
            except AuditorFailure as error:
                if error.kind not in MOVES_ON:
                    raise
                failure = error
            except DoesNotFit:
                if not self.in_order or replica is self.first:
                    raise
                failure = AuditorFailure(FailureKind.OUTGROWN, "the query is more than the fallback takes")
        assert failure is not None
        raise failure

    def order(self, stream: str, first: Replica | None = None) -> list[Replica]:
        """The replicas that an audit asks, one after the other: those that are left out at the end."""
        names = list(self._replicas)
        wanted = [self._replicas[name] for name in (names if self.in_order else ranked(names, stream))]
        if first is not None and not self.in_order:
            wanted = [first, *(replica for replica in wanted if replica is not first)]
        return sorted(wanted, key=lambda replica: not replica.is_ready)

    def measures(self) -> dict[str, float]:
        """How many servers there are, how many are down, and the sum of what each knows of itself."""
        found: dict[str, float] = {}
        for replica in self._replicas.values():
            for name, value in _measures(replica).items():
                found[name] = found.get(name, 0) + value
        return found

    @property
    def first(self) -> Replica:
        """The one that was named first."""
        return next(iter(self._replicas.values()))

    async def aclose(self) -> None:
        for replica in self._replicas.values():
            await replica.auditor.aclose()


def _measures(replica: Replica) -> dict[str, float]:
    """One server, or several that are one here, of which all are down with it."""
    found: dict[str, float] = {"replicas": 1, "replicas_left_out": 0}
    if isinstance(replica.auditor, Measured):
        found |= replica.auditor.measures()
    if replica.is_down:
        found["replicas_left_out"] = found["replicas"]
    return found


@dataclass(eq=False)
class Attempt:
    """One replica is asked. ``patience``: seconds of silence after which the next one is asked as well."""

    replica: Replica
    began: float
    patience: float
    verdict: Verdict | None = None
    failure: AuditorFailure | None = None

    @property
    def is_over(self) -> bool:
        return self.verdict is not None or self.failure is not None

    @property
    def decides(self) -> bool:
        """Nobody else needs to be asked."""
        return self.verdict is not None or (self.failure is not None and self.failure.kind not in MOVES_ON)

    def patience_left(self, now: float) -> float:
        return self.patience - (now - max(self.began, self.replica.heard))


def _is_decided(attempts: Sequence[Attempt]) -> bool:
    """There is a verdict; or a failure that is final, and nobody who could still do better."""
    if any(attempt.verdict is not None for attempt in attempts):
        return True
    return any(attempt.decides for attempt in attempts) and all(attempt.is_over for attempt in attempts)


def _deciding(attempts: Sequence[Attempt]) -> Attempt:
    """The first with a verdict; else the first whose failure is final; else the last that was made."""
    for attempt in attempts:
        if attempt.verdict is not None:
            return attempt
    return next((attempt for attempt in attempts if attempt.decides), attempts[-1])


class ReplicatedSession:
    """One query under audit, at one replica at a time."""

    def __init__(
        self, auditor: ReplicatedAuditor, stream: str, query: Query, replica: Replica, session: Session
    ) -> None:
        self.capacity = session.capacity  # of the first; one that takes over and takes less says OUTGROWN
        self._auditor = auditor
        self._stream = stream
        self._query = query
        self._at = replica
        self._sessions = {replica: session}
        self._news = anyio.Event()

    async def judge(self, trace: Trace, depth: Depth) -> Verdict:
        waiting = self._auditor.order(self._stream, self._at)
        attempts: list[Attempt] = []
        try:
            async with anyio.create_task_group() as group:
                while not _is_decided(attempts):
                    if waiting and self._is_next_due(attempts, waiting[0]):
                        attempts.append(self._begin(waiting))
                        group.start_soon(self._attempt, attempts[-1], trace, depth)
                    elif all(attempt.is_over for attempt in attempts):
                        break
                    else:
                        await self._wait(attempts, waiting)
                group.cancel_scope.cancel()
        finally:
            self._settle(attempts)
        end = _deciding(attempts)
        if end.decides:
            await self._stay_at(end.replica)
        if end.verdict is None:
            assert end.failure is not None
            raise end.failure
        if self._auditor.in_order and end.replica is not self._auditor.first:
            return replace(end.verdict, auditor=end.replica.auditor.name)
        return end.verdict

    async def aclose(self) -> None:
        while self._sessions:
            _, session = self._sessions.popitem()
            await session.aclose()

    def _is_next_due(self, attempts: Sequence[Attempt], following: Replica) -> bool:
        """Those that are left out are asked when everyone else has failed."""
        if all(attempt.is_over for attempt in attempts):
            return True
        if any(attempt.decides for attempt in attempts):
            return False
        last = attempts[-1]
        return following.is_ready and (last.is_over or last.patience_left(self._auditor.clock()) <= 0)

    def _begin(self, waiting: list[Replica]) -> Attempt:
        replica = waiting.pop(0)
        replica.asked()
        began = self._auditor.clock()
        left = anyio.current_effective_deadline() - anyio.current_time()
        has_another = bool(waiting) and waiting[0].is_ready
        return Attempt(replica, began, left / 2 if has_another else left)

    async def _attempt(self, attempt: Attempt, trace: Trace, depth: Depth) -> None:
        replica = attempt.replica
        try:
            with others_are_broken():
                session = self._sessions.get(replica)
                if session is None:
                    session = self._sessions[replica] = await replica.auditor.open(self._query)
                attempt.verdict = await session.judge(trace, depth)
        except AuditorFailure as failure:
            attempt.failure = failure
        except DoesNotFit:
            told = "the replica that takes over takes less than the one before"
            attempt.failure = AuditorFailure(FailureKind.OUTGROWN, told)
        if attempt.decides:
            replica.answered(attempt.began)
        elif attempt.failure is not None and attempt.failure.kind in FALLS_AT_ONCE:
            replica.fell(attempt.failure.kind.value)
        self._news.set()

    async def _wait(self, attempts: Sequence[Attempt], waiting: Sequence[Replica]) -> None:
        """Until an attempt is over, or the last one may have been silent for too long."""
        self._news = anyio.Event()
        seconds = float("inf")
        if waiting and waiting[0].is_ready:
            seconds = max(0.0, attempts[-1].patience_left(self._auditor.clock()))
        with anyio.move_on_after(seconds):
            await self._news.wait()

    def _settle(self, attempts: Sequence[Attempt]) -> None:
        """Who fell, seen from the end: it was silent, or refused what a copy of it then answered."""
        is_answered = any(attempt.verdict is not None for attempt in attempts)
        now = self._auditor.clock()
        for attempt in attempts:
            if not attempt.is_over and attempt.patience_left(now) <= 0:
                attempt.replica.fell("silent")
            elif is_answered and attempt.failure is not None and attempt.failure.kind in FALLS_IF_ANOTHER_ANSWERS:
                say = attempt.replica.refused if self._auditor.in_order else attempt.replica.fell
                say(attempt.failure.kind.value)

    async def _stay_at(self, replica: Replica) -> None:
        """What others hold for this stream isn't needed any more, but for a first one that it goes back to."""
        self._at = replica
        wanted = (replica, self._auditor.first) if self._auditor.in_order else (replica,)
        for other in [each for each in self._sessions if each not in wanted]:
            await self._sessions.pop(other).aclose()
