"""The worker with audits that only count: who is read when, together with whom, and what breaks alone."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, wait

import pytest

torch = pytest.importorskip("torch", reason="the extra `local` isn't installed")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from guardtrace_proxy.auditor import worker as worker_module  # noqa: E402
from guardtrace_proxy.auditor.inference import Piece  # noqa: E402
from guardtrace_proxy.auditor.protocol import AuditorFailure, FailureKind  # noqa: E402
from guardtrace_proxy.auditor.reading import Reading  # noqa: E402
from guardtrace_proxy.auditor.worker import AGEING, Audit, Task, Worker, choose  # noqa: E402

NOTHING = torch.empty(0)


def piece(tokens: int, left: int | None = None) -> Piece:
    return Piece(Reading([]), [0] * tokens, NOTHING, NOTHING, 1, tokens if left is None else left)


def audit(*sizes: int) -> Audit[int]:
    """Reads pieces of these sizes; its result is their sum."""
    for number, size in enumerate(sizes):
        yield piece(size, sum(sizes[number:]))
    return sum(sizes)


class Device:
    """Notes each pass; the first waits until it is let go, so that more can arrive meanwhile."""

    def __init__(self, broken: Callable[[list[int]], bool] = lambda sizes: False) -> None:
        self.passes: list[list[int]] = []
        self.let_go = threading.Event()
        self.began = threading.Event()
        self._broken = broken

    def forward(self, pieces: Sequence[Piece]) -> list[torch.Tensor]:
        sizes = [len(each.ids) for each in pieces]
        self.passes.append(sizes)
        self.began.set()
        assert self.let_go.wait(10)
        if self._broken(sizes):
            raise RuntimeError("out of memory while reading 'bread'")
        return [torch.zeros(1, 3) for _ in pieces]


@pytest.fixture
def device() -> Device:
    return Device()


@pytest.fixture
def freed() -> list[str]:
    return []


@pytest.fixture
def worker(device: Device, freed: list[str]) -> Iterator[Worker]:
    worker = Worker(device.forward, 100, lambda: True, lambda: freed.append("room"))
    yield worker
    device.let_go.set()
    worker.close()


def waiting(tokens: int, since: float, left: int | None = None) -> Task:
    task = Task(audit(), since)
    task.piece = piece(tokens, left)
    return task


def test_the_shortest_go_first_and_together() -> None:
    tasks = [waiting(60, 0.0), waiting(30, 0.0), waiting(50, 0.0, left=900), waiting(20, 0.0)]
    assert [len(task.piece.ids) for task in choose(tasks, 110, 0.0)] == [20, 30, 60]
    assert [len(task.piece.ids) for task in choose(tasks, 10, 0.0)] == [20]


def test_who_has_waited_goes_before_who_is_short() -> None:
    long = waiting(90, 0.0, left=AGEING)
    for now, first in ((0.5, 10), (2.0, 90)):
        assert [len(task.piece.ids) for task in choose([waiting(10, now), long], 1, now)] == [first]


@given(st.lists(st.tuples(st.integers(1, 600), st.floats(0, 100)), min_size=1), st.integers(1, 1000))
def test_every_pass_takes_somebody_and_keeps_to_its_bound(sizes: list[tuple[int, float]], most: int) -> None:
    tasks = [waiting(size, since) for size, since in sizes]
    chosen = choose(tasks, most, 100.0)
    assert chosen
    counted = [len(task.piece.ids) for task in chosen if len(task.piece.ids) > 1]
    assert len(counted) <= 1 or sum(counted) <= most
    assert {task for task in tasks if len(task.piece.ids) == 1} <= set(chosen)


def test_a_prefill_goes_beside_an_annotation_however_old_that_is() -> None:
    annotation, prefill = waiting(1, 0.0), waiting(512, 59.0, left=5000)
    assert set(choose([annotation, prefill], 512, 60.0)) == {annotation, prefill}


def test_what_arrives_during_a_pass_is_read_together(worker: Worker, device: Device) -> None:
    futures = [worker.submit(audit(5, 1))]
    assert device.began.wait(10)
    futures += [worker.submit(audit(size)) for size in (30, 20)]
    device.let_go.set()
    assert [future.result(10) for future in futures] == [6, 30, 20]
    assert device.passes == [[5], [1, 20, 30]]


def test_a_cancelled_audit_is_not_read_any_further(worker: Worker, device: Device) -> None:
    closed = threading.Event()

    def noting() -> Audit[int]:
        try:
            return (yield from audit(5, 6, 7))
        finally:
            closed.set()

    first = worker.submit(noting())
    assert device.began.wait(10)
    never = worker.submit(audit(8))
    assert first.cancel()
    assert never.cancel()
    other = worker.submit(audit(9))
    device.let_go.set()
    assert other.result(10) == 9
    assert closed.is_set()
    assert device.passes == [[5], [9]]
    with pytest.raises(CancelledError):
        first.result()


def test_a_cancelled_audit_is_gone_before_the_next_of_its_session_begins(worker: Worker, device: Device) -> None:
    """Even where the worker is busy with another's beginning when one is cancelled and the other arrives."""
    under_way: set[str] = set()
    seen: list[set[str]] = []
    busy, go_on = threading.Event(), threading.Event()

    def of_one_session(name: str) -> Audit[int]:
        under_way.add(name)
        seen.append(set(under_way))
        try:
            return (yield from audit(5, 1))
        finally:
            under_way.discard(name)

    def beginning() -> Audit[int]:
        busy.set()
        assert go_on.wait(10)
        return (yield from audit(2))

    first = worker.submit(of_one_session("first"))
    assert device.began.wait(10)
    other = worker.submit(beginning())
    device.let_go.set()
    if busy.wait(10) and first.cancel():
        second = worker.submit(of_one_session("second"))
        go_on.set()
        assert second.result(10) == 6
    go_on.set()
    assert first.cancelled()
    assert other.result(10) == 2
    assert all(len(names) == 1 for names in seen)


def test_a_thread_that_cant_be_started_is_no_trap_for_the_next(
    worker: Worker, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.let_go.set()

    def refuse(_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as context:
        context.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError):
            worker.submit(audit(1))
    assert worker.submit(audit(2)).result(10) == 2
    assert device.passes == [[2]]


def test_whoever_breaks_breaks_alone_and_memory_is_freed_first(freed: list[str]) -> None:
    device = Device(broken=lambda sizes: 13 in sizes)
    device.let_go.set()
    worker = Worker(device.forward, 100, lambda: True, lambda: freed.append("room"))
    gate = threading.Event()

    def starting() -> Audit[int]:
        assert gate.wait(10)
        return (yield from audit(1))

    futures = [worker.submit(starting()), *(worker.submit(audit(size)) for size in (12, 13, 14))]
    gate.set()
    wait(futures, 10)
    assert [future.result() for future in futures if future is not futures[2]] == [1, 12, 14]
    with pytest.raises(AuditorFailure, match="RuntimeError") as caught:
        futures[2].result()
    assert caught.value.kind is FailureKind.BROKEN
    assert "bread" not in str(caught.value)
    assert device.passes == [[1, 12, 13, 14], [1], [12], [13], [14]]
    assert freed == ["room"]
    worker.close()


def test_a_device_of_which_no_memory_can_be_freed_fails_each_audit_and_waits_for_no_other() -> None:
    def gone(*_: object) -> list[torch.Tensor]:
        raise RuntimeError("CUDA error: device-side assert triggered")

    worker = Worker(gone, 100, lambda: True, gone)
    for _ in range(3):
        with pytest.raises(AuditorFailure, match="RuntimeError") as caught:
            worker.submit(audit(1)).result(10)
        assert caught.value.kind is FailureKind.BROKEN
    assert not worker._arrived
    worker.close()


@pytest.mark.parametrize("error", [RuntimeError("bread"), SystemExit(1)])
def test_a_thread_that_ends_by_an_error_leaves_nobody_waiting_and_the_next_audit_starts_another(
    device: Device, error: BaseException
) -> None:
    errors = [error]

    def may_start() -> bool:
        if errors:
            raise errors.pop()
        return True

    worker = Worker(device.forward, 100, may_start, lambda: None)
    first = worker.submit(audit(5, 6))
    assert device.began.wait(10)
    second, third = worker.submit(audit(7)), worker.submit(audit(8))
    device.let_go.set()
    for future in (first, second, third):
        with pytest.raises(AuditorFailure, match=type(error).__name__) as caught:
            future.result(10)
        assert caught.value.kind is FailureKind.BROKEN
    assert worker.submit(audit(9)).result(10) == 9
    worker.close()


def test_what_a_broken_pass_made_is_gone_before_memory_is_freed_and_while_its_failure_is_kept() -> None:
    made: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    def count() -> None:
        alive.append(sum(made_by_pass() is not None for made_by_pass in made))

    def forward(pieces: Sequence[Piece]) -> list[torch.Tensor]:
        count()
        held = torch.zeros(len(pieces))
        made.append(weakref.ref(held))
        raise RuntimeError("out of memory")

    worker = Worker(forward, 100, lambda: True, count)
    gate = threading.Event()

    def starting() -> Audit[int]:
        assert gate.wait(10)
        return (yield from audit(1))

    futures = [worker.submit(starting()), worker.submit(audit(2))]
    gate.set()
    failures = [future.exception(10) for future in futures]
    count()
    assert [type(failure.__cause__) for failure in failures if failure is not None] == [RuntimeError] * 2
    assert len(made) == 3  # both together, then each
    assert alive == [0, 0, 0, 0, 0]
    worker.close()


def test_an_audit_that_raises_by_itself_is_a_failure_and_the_next_is_read(worker: Worker, device: Device) -> None:
    def raising() -> Audit[int]:
        yield piece(3)
        raise KeyError("bread")

    device.let_go.set()
    with pytest.raises(AuditorFailure, match="KeyError"):
        worker.submit(raising()).result(10)
    assert worker.submit(audit(4)).result(10) == 4


def test_none_starts_while_there_is_no_memory_unless_nothing_runs(device: Device) -> None:
    worker = Worker(device.forward, 100, lambda: False, lambda: None)
    device.let_go.set()
    futures = [worker.submit(audit(size, 1)) for size in (2, 3)]
    assert [future.result(10) for future in futures] == [3, 4]
    assert device.passes == [[2], [1], [3], [1]]
    worker.close()


def test_closing_ends_what_runs_and_what_waits(worker: Worker, device: Device) -> None:
    first = worker.submit(audit(1, 2))
    assert device.began.wait(10)
    second = worker.submit(audit(3))
    worker.close()
    device.let_go.set()
    for future in (first, second):
        with pytest.raises(AuditorFailure) as caught:
            future.result(10)
        assert caught.value.kind is FailureKind.CANCELLED
    with pytest.raises(AuditorFailure):
        worker.submit(audit(4))
    worker.join()
    assert worker._thread is None


def test_an_idle_thread_ends_and_another_takes_its_place(
    worker: Worker, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "IDLE_SECONDS", 0.01)
    device.let_go.set()
    for _ in range(3):
        assert worker.submit(audit(1)).result(10) == 1
        thread = worker._thread
        if thread is not None:
            thread.join(10)
            assert not thread.is_alive()
