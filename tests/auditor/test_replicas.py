"""Streams stay with their replica, failures move on, and what fell comes back. Replicas are scripted here; sockets are in
tests/server/test_replicas.py."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import LogCapture

from guardtrace_proxy.auditor import health, make_auditor
from guardtrace_proxy.auditor.health import (
    FALLS_IF_ANOTHER_ANSWERS,
    FIRST_PAUSE_SECONDS,
    LONGEST_PAUSE_SECONDS,
    MOVES_ON,
    QUIET_SECONDS,
)
from guardtrace_proxy.auditor.openai import OpenAIAuditor
from guardtrace_proxy.auditor.prompt import Query, Trace, Turn
from guardtrace_proxy.auditor.protocol import (
    Auditor,
    AuditorFailure,
    AuditorSettingsError,
    Depth,
    DoesNotFit,
    FailureKind,
)
from guardtrace_proxy.auditor.replicas import ReplicatedAuditor, ReplicatedSession, ranked
from guardtrace_proxy.policy.levels import Level, Verdict
from tests.server.scripted import by_word, judging, model_server
from tests.tls import private_authority

TRACE = Trace("Flour, then water.", "Mix them.")
NAMES = ("a", "b", "c")
Answer = Callable[[], Awaitable[None]]


@contextmanager
def logged() -> Iterator[list[MutableMapping[str, Any]]]:
    """What the replicas log, whatever other tests have set up."""
    capture = LogCapture()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(health, "log", structlog.wrap_logger(None, [capture], structlog.BoundLogger))
        yield capture.entries


async def at_once() -> None:
    """A verdict."""


async def never() -> None:
    await anyio.sleep_forever()


def failing(kind: FailureKind) -> Answer:
    async def fail() -> None:
        raise AuditorFailure(kind, "scripted")

    return fail


@dataclass
class Scripted:
    """An auditor that does as it is told; it keeps count of its sessions and remembers what it was asked."""

    name: str
    log: list[str]
    answer: Answer = at_once
    start_error: str | None = None
    warnings: tuple[str, ...] = ()
    escalate_at: float | None = None
    capacity: int = 100
    does_not_fit: bool = False
    open_answer: Answer = at_once
    opened: int = 0
    closed: int = 0
    traces: list[Trace] = field(default_factory=list)
    is_closed: bool = False

    async def start(self) -> None:
        if self.start_error:
            raise AuditorSettingsError(self.start_error)

    async def open(self, query: Query) -> ScriptedSession:
        if self.does_not_fit:
            raise DoesNotFit("messages", "too much")
        await self.open_answer()
        self.opened += 1
        return ScriptedSession(self)

    async def aclose(self) -> None:
        self.is_closed = True


class ScriptedSession:
    def __init__(self, auditor: Scripted) -> None:
        self.auditor = auditor
        self.capacity = auditor.capacity
        self.is_busy = False

    async def judge(self, trace: Trace, depth: Depth) -> Verdict:
        assert not self.is_busy
        self.is_busy = True
        self.auditor.log.append(self.auditor.name)
        self.auditor.traces.append(trace)
        try:
            await self.auditor.answer()
        finally:
            self.is_busy = False
        return Verdict(Level.SAFE, analysis=self.auditor.name)

    async def aclose(self) -> None:
        self.auditor.closed += 1


class World:
    """Three replicas, a clock that stands still, and a stream that wants them in the order ``first, second, third``."""

    def __init__(self, names: Sequence[str] = NAMES) -> None:
        self.now = 100.0
        self.asked: list[str] = []
        self.replicas = {name: Scripted(name, self.asked) for name in names}
        self.auditor = ReplicatedAuditor(self.replicas, clock=lambda: self.now)
        self.stream = "stream-7"
        self.first, self.second, *_ = (self.replicas[name] for name in ranked(names, self.stream))

    async def open(self, stream: str | None = None) -> ReplicatedSession:
        return await self.auditor.open(Query([Turn("user", "?")], stream=self.stream if stream is None else stream))

    async def judge(self, session: ReplicatedSession | None = None, seconds: float = 30) -> str | None:
        """The name of the replica whose verdict it is."""
        with anyio.fail_after(seconds):
            return (await (session or await self.open()).judge(TRACE, Depth.ANNOTATE)).analysis

    async def failure(self, session: ReplicatedSession | None = None) -> FailureKind:
        with pytest.raises(AuditorFailure) as caught:
            await self.judge(session)
        return caught.value.kind

    def taken(self) -> list[str]:
        """Who was asked since the last look."""
        asked, self.asked[:] = list(self.asked), []
        return asked


# Which replica


streams = st.text(max_size=30)
several = st.lists(st.text(min_size=1, max_size=20), min_size=2, max_size=6, unique=True)


@given(several, streams, st.data())
def test_without_one_replica_only_its_own_streams_move(names: list[str], stream: str, data: st.DataObject) -> None:
    before = ranked(names, stream)
    assert sorted(before) == sorted(names)
    gone = data.draw(st.sampled_from(names))
    assert ranked([name for name in names if name != gone], stream) == [name for name in before if name != gone]


@given(several, streams)
def test_the_order_of_the_settings_doesnt_matter(names: list[str], stream: str) -> None:
    assert ranked(names, stream) == ranked(names[::-1], stream)


def test_streams_spread_evenly() -> None:
    names = [f"http://10.0.0.{number}:8000/v1" for number in range(4)]
    for place in range(2):
        counts = Counter(ranked(names, f"{number:016x}")[place] for number in range(4000))
        assert all(850 < counts[name] < 1150 for name in names)


def test_a_stream_stays_where_it_is_and_its_choices_share_it() -> None:
    async def run() -> None:
        world = World()
        one, other = await world.open(), await world.open()
        for _ in range(3):
            assert await world.judge(one) == await world.judge(other) == world.first.name
        assert set(world.taken()) == {world.first.name}
        for number in range(40):
            await world.judge(await world.open(f"stream {number}"))
        assert set(world.taken()) == set(NAMES)
        for _ in range(40):
            await world.judge(await world.open(""))  # no stream's name: any
        assert set(world.taken()) == set(NAMES)

    anyio.run(run)


# What moves on


@pytest.mark.parametrize("kind", sorted(MOVES_ON))
def test_what_another_replica_may_do_better_moves_on_within_the_call(kind: FailureKind) -> None:
    async def run() -> None:
        world = World()
        session = await world.open()
        assert await world.judge(session) == world.first.name
        world.first.answer = failing(kind)
        assert await world.judge(session) == world.second.name
        assert world.second.traces == [TRACE]  # the whole of it
        assert world.taken() == [world.first.name, world.first.name, world.second.name]
        # It stays, though the first one would be well again.
        world.first.answer = at_once
        world.now += LONGEST_PAUSE_SECONDS
        assert await world.judge(session) == world.second.name
        assert (world.first.closed, world.second.closed) == (1, 0)
        await session.aclose()
        assert (world.second.opened, world.second.closed) == (1, 1)

    anyio.run(run)


@pytest.mark.parametrize("kind", sorted(set(FailureKind) - MOVES_ON))
def test_what_the_model_or_the_text_says_is_final(kind: FailureKind) -> None:
    async def run() -> None:
        world = World()
        world.first.answer = failing(kind)
        assert await world.failure() is kind
        assert await world.failure() is kind
        assert world.taken() == [world.first.name] * 2

    anyio.run(run)


def test_what_raises_instead_of_failing_moves_on_as_broken() -> None:
    async def raising() -> None:
        raise RuntimeError("with user text")

    async def run() -> None:
        world = World()
        world.first.answer = raising
        assert await world.judge() == world.second.name
        for replica in world.replicas.values():
            replica.answer = raising
        assert await world.failure() is FailureKind.BROKEN

    anyio.run(run)


def test_where_all_fail_each_was_asked_once_and_the_last_failure_is_raised() -> None:
    async def run() -> None:
        world = World()
        kinds = [FailureKind.UNREACHABLE, FailureKind.REFUSED, FailureKind.OVERLOADED]
        order = ranked(NAMES, world.stream)
        for name, kind in zip(order, kinds, strict=True):
            world.replicas[name].answer = failing(kind)
        assert await world.failure() is FailureKind.OVERLOADED
        assert world.taken() == order
        # Those left out are asked all the same, once everyone else has failed.
        assert await world.failure() is FailureKind.OVERLOADED
        assert sorted(world.taken()) == sorted(order)
        world.replicas[order[0]].answer = at_once
        assert await world.judge() == order[0]
        world.taken()
        assert await world.judge() == order[0]
        assert world.taken() == [order[0]]

    anyio.run(run)


def test_a_session_that_cant_be_opened_is_opened_elsewhere_and_a_request_that_doesnt_fit_isnt() -> None:
    async def run() -> None:
        world = World()
        world.first.open_answer = failing(FailureKind.BROKEN)
        assert await world.judge() == world.second.name
        for replica in world.replicas.values():
            replica.open_answer = failing(FailureKind.BROKEN)
        with pytest.raises(AuditorFailure):
            await world.open()
        world = World()
        world.first.does_not_fit = True
        with pytest.raises(DoesNotFit):
            await world.open()
        assert world.second.opened == 0

    anyio.run(run)


def test_a_replica_that_takes_less_fails_the_audit_rather_than_the_request() -> None:
    async def run() -> None:
        world = World()
        session = await world.open()
        world.first.answer, world.second.does_not_fit = failing(FailureKind.UNREACHABLE), True
        assert await world.failure(session) is FailureKind.OUTGROWN

    anyio.run(run)


# Pauses


def test_one_that_fell_is_left_out_then_tried_by_one_stream_at_a_time() -> None:
    async def run() -> None:
        world = World()
        world.first.answer = failing(FailureKind.UNREACHABLE)
        assert await world.judge() == world.second.name
        world.taken()
        for _ in range(3):
            assert await world.judge() == world.second.name
        assert world.taken() == [world.second.name] * 3
        asked_again = 0
        for _ in range(40):  # always after the pause: it doubles each time, so most of them find it left out
            world.now += FIRST_PAUSE_SECONDS
            assert await world.judge() == world.second.name
            assert await world.judge() == world.second.name
            asked = Counter(world.taken())
            assert asked[world.first.name] <= 1
            asked_again += asked[world.first.name]
        assert 3 <= asked_again <= 8
        world.now += LONGEST_PAUSE_SECONDS
        world.first.answer = at_once
        assert await world.judge() == world.first.name
        assert await world.judge() == world.first.name

    anyio.run(run)


def test_the_pause_is_bounded_and_random() -> None:
    async def run() -> None:
        worlds = [World() for _ in range(20)]
        tried = []
        for world in worlds:
            world.first.answer = failing(FailureKind.OVERLOADED)
            await world.judge()
            for _ in range(12):
                world.now += LONGEST_PAUSE_SECONDS
                world.taken()
                await world.judge()
                assert world.first.name in world.taken()
            world.now += LONGEST_PAUSE_SECONDS * 0.49
            await world.judge()
            assert world.first.name not in world.taken()
            world.now += LONGEST_PAUSE_SECONDS * 0.25
            await world.judge()
            tried.append(world.first.name in world.taken())
        assert set(tried) == {True, False}

    anyio.run(run)


def test_what_was_under_way_when_a_replica_fell_doesnt_bring_it_back() -> None:
    async def run() -> None:
        world = World()
        go = anyio.Event()
        world.first.answer = go.wait
        async with anyio.create_task_group() as group:
            group.start_soon(world.judge)
            await anyio.wait_all_tasks_blocked()
            world.now += 0.1
            world.first.answer = failing(FailureKind.OVERLOADED)
            assert await world.judge() == world.second.name
            world.now += 0.1
            go.set()
        world.taken()
        assert await world.judge() == world.second.name
        assert world.taken() == [world.second.name]

    anyio.run(run)


@pytest.mark.parametrize("kind", [FailureKind.REFUSED, FailureKind.BROKEN])
def test_a_question_that_all_refuse_takes_none_of_them_out(kind: FailureKind) -> None:
    async def run() -> None:
        world = World()
        for replica in world.replicas.values():
            replica.answer = failing(kind)
        with logged() as logs:
            assert await world.failure() is kind
        assert logs == []
        for replica in world.replicas.values():
            replica.answer = at_once
        assert await world.judge() == world.first.name
        world.first.answer = failing(kind)
        assert await world.judge() == world.second.name
        world.taken()
        assert await world.judge() == world.second.name
        assert world.taken() == [world.second.name]

    anyio.run(run)


def test_the_log_says_who_went_out_and_came_back_once() -> None:
    async def run() -> None:
        world = World()
        world.first.answer = failing(FailureKind.UNREACHABLE)
        with logged() as logs:
            async with anyio.create_task_group() as group:
                for _ in range(5):
                    group.start_soon(world.judge)
            world.now += LONGEST_PAUSE_SECONDS
            await world.judge()
            world.first.answer = at_once
            world.now += LONGEST_PAUSE_SECONDS
            await world.judge()
            await world.judge()
        name = world.first.name
        assert logs == [
            {"event": "auditor replica left out", "replica": name, "why": "unreachable", "log_level": "warning"},
            {"event": "auditor replica is back", "replica": name, "log_level": "info"},
        ]

    anyio.run(run)


# Silence; the real clock


def silent_world() -> World:
    world = World()
    world.auditor = ReplicatedAuditor(world.replicas)
    world.first.answer = never
    return world


def test_a_replica_that_never_answers_is_survived_within_the_callers_time_and_left_out() -> None:
    async def run() -> None:
        world = silent_world()
        session = await world.open()
        with logged() as logs:
            assert await world.judge(session, seconds=3) == world.second.name
        assert [(entry["replica"], entry["why"]) for entry in logs] == [(world.first.name, "silent")]
        world.taken()
        assert await world.judge(session) == world.second.name
        assert await world.judge() == world.second.name
        assert world.taken() == [world.second.name] * 2

    anyio.run(run)


def test_a_final_failure_of_the_one_asked_as_well_waits_for_the_slow_one() -> None:
    async def run() -> None:
        world = silent_world()
        second_asked, go = anyio.Event(), anyio.Event()

        async def until_told() -> None:
            await go.wait()

        async def tell_and_fail() -> None:
            second_asked.set()
            raise AuditorFailure(FailureKind.UNREADABLE, "scripted")

        world.first.answer, world.second.answer = until_told, tell_and_fail
        session = await world.open()
        async with anyio.create_task_group() as group:

            async def release() -> None:
                await second_asked.wait()
                await anyio.wait_all_tasks_blocked()
                go.set()

            group.start_soon(release)
            assert await world.judge(session, seconds=4) == world.first.name

    anyio.run(run)


def test_a_slow_replica_may_still_be_the_first_to_answer_and_isnt_left_out() -> None:
    async def run() -> None:
        world = silent_world()
        second_asked, go = anyio.Event(), anyio.Event()

        async def until_told() -> None:
            await go.wait()

        async def tell_and_hang() -> None:
            second_asked.set()
            await never()

        world.first.answer, world.second.answer = until_told, tell_and_hang
        session = await world.open()
        with logged() as logs:
            async with anyio.create_task_group() as group:

                async def release() -> None:
                    await second_asked.wait()
                    go.set()

                group.start_soon(release)
                assert await world.judge(session, seconds=4) == world.first.name
        assert logs == []
        assert world.second.opened == world.second.closed == 1
        assert await world.judge(session) == world.first.name

    anyio.run(run)


def test_a_replica_that_answers_others_meanwhile_is_busy_not_silent() -> None:
    async def run() -> None:
        world = silent_world()
        session, other = await world.open(), await world.open()

        async def hang_once() -> None:
            world.first.answer = at_once
            await never()

        world.first.answer = hang_once
        with logged() as logs:
            async with anyio.create_task_group() as group:

                async def keep_it_busy() -> None:
                    while True:
                        await anyio.sleep(0.05)
                        await other.judge(TRACE, Depth.ANNOTATE)

                group.start_soon(keep_it_busy)
                with pytest.raises(TimeoutError):
                    await world.judge(session, seconds=1.5)
                group.cancel_scope.cancel()
        assert logs == []
        assert world.second.opened == 0

    anyio.run(run)


def test_where_all_hang_the_callers_time_bounds_it_and_all_are_left_out() -> None:
    async def run() -> None:
        world = silent_world()
        for replica in world.replicas.values():
            replica.answer = never
        with logged() as logs, pytest.raises(TimeoutError):
            await world.judge(seconds=1)
        assert sorted(world.taken()) == sorted(NAMES)
        assert sorted(entry["replica"] for entry in logs) == sorted(NAMES)

    anyio.run(run)


def test_a_client_that_leaves_says_nothing_about_a_replica() -> None:
    async def run() -> None:
        world = silent_world()
        session = await world.open()
        with logged() as logs:
            async with anyio.create_task_group() as group:
                group.start_soon(world.judge, session)
                await anyio.wait_all_tasks_blocked()
                group.cancel_scope.cancel()
        assert logs == []
        assert world.taken() == [world.first.name]
        await session.aclose()
        assert (world.first.opened, world.first.closed) == (1, 1)

    anyio.run(run)


def test_one_that_is_left_out_isnt_asked_while_another_may_still_answer() -> None:
    async def run() -> None:
        world = World()
        third = world.auditor.order(world.stream)[2]

        async def first_hangs() -> None:
            world.now += 30
            await never()

        async def second_refuses() -> None:
            third.fell("scripted")
            await failing(FailureKind.REFUSED)()

        world.first.answer, world.second.answer = first_hangs, second_refuses
        session = await world.open()
        with pytest.raises(TimeoutError):
            await world.judge(session, seconds=1)
        assert world.taken() == [world.first.name, world.second.name]

    anyio.run(run)


# All of them together


def test_names_warnings_and_ends_are_those_of_all() -> None:
    async def run() -> None:
        world = World()
        for name, warnings in (("a", ("one",)), ("b", ("one", "two")), ("c", ())):
            world.replicas[name].warnings = warnings
        world.replicas["b"].escalate_at, world.replicas["c"].escalate_at = 0.3, 0.2
        await world.auditor.start()
        assert world.auditor.escalate_at == 0.2
        assert world.auditor.name == "a"
        assert world.auditor.warnings == ("one", "two")
        world.replicas["c"].warnings = ("three",)  # its first audit found it out
        assert world.auditor.warnings == ("one", "two", "three")
        await world.auditor.aclose()
        assert all(replica.is_closed for replica in world.replicas.values())

    anyio.run(run)


def test_a_settings_error_of_any_ends_the_start() -> None:
    async def run() -> None:
        world = World()
        world.replicas["b"].start_error = "auditor.depth: not here"
        with pytest.raises(AuditorSettingsError, match="not here"):
            await world.auditor.start()
        assert all(replica.is_closed for replica in world.replicas.values())

    anyio.run(run)


def test_one_url_or_a_list_of_one_is_a_plain_auditor() -> None:
    def made(base_url: Any) -> object:
        return make_auditor("openai", model="guard", base_url=base_url)

    assert isinstance(made("http://a/v1"), OpenAIAuditor)
    assert isinstance(made(["http://a/v1"]), OpenAIAuditor)
    assert isinstance(made(["http://a/v1", "http://b/v1"]), ReplicatedAuditor)
    with pytest.raises(AuditorSettingsError, match="base_url"):
        made([])


def test_one_file_of_authorities_is_for_all_of_a_list(tmp_path: Path) -> None:
    tls = private_authority(tmp_path / "ca.pem")
    script = judging(by_word)

    async def run(urls: list[str]) -> None:
        auditor = make_auditor("openai", model="guard", base_url=urls, ca_file=str(tmp_path / "ca.pem"))
        await auditor.start()
        for stream in range(20):
            session = await auditor.open(Query([Turn("user", "Hello?")], stream=str(stream)))
            await session.judge(Trace("well", "fine"), Depth.ANNOTATE)
        await auditor.aclose()

    with model_server(script, tls) as first, model_server(script, tls) as second:
        anyio.run(run, [first.url, second.url])
    assert first.requests
    assert second.requests


# In order of preference: an auditor and its fallback


class Preferring(World):
    """``a`` is the auditor, ``b`` its fallback."""

    def __init__(self) -> None:
        super().__init__(("a", "b"))
        self.auditor = ReplicatedAuditor(self.replicas, clock=lambda: self.now, in_order=True)
        self.first, self.second = self.replicas["a"], self.replicas["b"]


def test_every_stream_belongs_to_the_first_and_goes_back_to_it() -> None:
    async def run() -> None:
        world = Preferring()
        for number in range(20):
            assert await world.judge(await world.open(f"stream {number}")) == "a"
        session = await world.open()
        world.first.answer = failing(FailureKind.UNREACHABLE)
        assert await world.judge(session) == "b"
        assert await world.judge(session) == "b"
        world.first.answer = at_once
        world.now += FIRST_PAUSE_SECONDS
        assert await world.judge(session) == "a"
        assert await world.judge(session) == "a"
        await session.aclose()
        assert [each.opened - each.closed for each in (world.first, world.second)] == [20, 0]

    anyio.run(run)


def test_a_verdict_says_where_the_fallback_judged() -> None:
    async def run() -> None:
        world = Preferring()
        session = await world.open()
        assert (await session.judge(TRACE, Depth.LABEL)).auditor is None
        world.first.answer = failing(FailureKind.OVERLOADED)
        assert (await session.judge(TRACE, Depth.LABEL)).auditor == "b"
        world.second.answer = failing(FailureKind.OVERLOADED)
        assert await world.failure(session) is FailureKind.OVERLOADED

    anyio.run(run)


@pytest.mark.parametrize("kind", sorted(FALLS_IF_ANOTHER_ANSWERS))
def test_a_question_that_the_fallback_alone_answers_leaves_nobody_out(kind: FailureKind) -> None:
    async def run() -> None:
        world = Preferring()
        world.first.answer = failing(kind)
        with logged() as logs:
            for _ in range(3):
                assert await world.judge() == "b"
                world.now += QUIET_SECONDS / 2
        assert [(entry["replica"], entry["why"], entry["log_level"]) for entry in logs] == [("a", kind, "warning")] * 2
        world.first.answer = at_once
        assert await world.judge(await world.open("another tenant's")) == "a"

    anyio.run(run)


def test_a_first_that_keeps_refusing_keeps_its_session() -> None:
    async def run() -> None:
        world = Preferring()
        session = await world.open()
        world.first.answer = failing(FailureKind.REFUSED)
        for _ in range(3):
            assert await world.judge(session) == "b"
        assert [(each.opened, each.closed) for each in (world.first, world.second)] == [(1, 0), (1, 0)]
        world.first.answer = at_once
        assert await world.judge(session) == "a"
        assert world.second.closed == 1
        await session.aclose()
        assert (world.first.opened, world.first.closed) == (1, 1)

    anyio.run(run)


def test_several_servers_and_a_fallback_are_counted_each_once() -> None:
    async def run() -> None:
        world = World()
        pair: dict[str, Auditor] = {"auditor": world.auditor, "auditor.fallback": Scripted("spare", world.asked)}
        both = ReplicatedAuditor(pair, clock=lambda: world.now, in_order=True)
        assert both.measures() == {"replicas": 4, "replicas_left_out": 0}
        world.auditor.order(world.stream)[0].fell("scripted")
        assert both.measures() == {"replicas": 4, "replicas_left_out": 1}
        both.first.fell("silent")
        assert both.measures() == {"replicas": 4, "replicas_left_out": 3}

    anyio.run(run)


def test_one_that_fell_counts_as_left_out_until_it_answers_and_not_just_for_its_pause() -> None:
    """Where few streams come, nobody asks it for long after its pause: an alert on it has to see it all the while."""

    async def run() -> None:
        world = World()
        world.first.answer = failing(FailureKind.UNREACHABLE)
        assert world.auditor.measures()["replicas_left_out"] == 0
        for _ in range(3):
            await world.judge()
            for passed in (0, LONGEST_PAUSE_SECONDS, 10 * LONGEST_PAUSE_SECONDS):
                world.now += passed
                assert world.auditor.measures()["replicas_left_out"] == 1
        world.first.answer = at_once
        assert await world.judge() == world.first.name
        assert world.auditor.measures()["replicas_left_out"] == 0

    anyio.run(run)


def test_where_opening_raises_what_it_shouldnt_the_next_one_is_asked() -> None:
    async def odd() -> None:
        raise KeyError("bread")

    async def run() -> None:
        world = World()
        world.first.open_answer = odd
        assert await world.judge() == world.second.name
        for replica in world.replicas.values():
            replica.open_answer = odd
        with pytest.raises(AuditorFailure, match="KeyError") as caught:
            await world.open()
        assert caught.value.kind is FailureKind.BROKEN

    anyio.run(run)


def test_a_fallback_that_takes_less_fails_the_audit_rather_than_the_request() -> None:
    async def run() -> None:
        world = Preferring()
        world.first.open_answer, world.second.does_not_fit = failing(FailureKind.BROKEN), True
        with pytest.raises(AuditorFailure) as caught:
            await world.open()
        assert caught.value.kind is FailureKind.OUTGROWN
        world = Preferring()
        world.first.does_not_fit = True
        with pytest.raises(DoesNotFit):
            await world.open()

    anyio.run(run)
