"""The auditor is killed, stopped, slow, writes garbage, half-closes: no marker leaves, and replies fail closed, in time."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from guardtrace_proxy.auditor.health import FIRST_PAUSE_SECONDS
from tests.faults.peer import WORDS
from tests.faults.rig import SETTLE_SECONDS, TIMEOUT_MS, Reply, Rig, leaks, rig
from tests.waiting import eventually


@pytest.fixture(scope="module")
def running(tmp_path_factory) -> Iterator[Rig]:
    with rig(tmp_path_factory.mktemp("faults")) as built:
        yield built


@pytest.fixture(scope="module")
def with_fallback(tmp_path_factory) -> Iterator[Rig]:
    with rig(tmp_path_factory.mktemp("faults"), with_fallback=True) as built:
        yield built


@pytest.fixture(autouse=True)
def _settled(running: Rig) -> Iterator[None]:
    running.well()
    yield
    assert running.settles()


def failed_closed(reply: Reply) -> bool:
    assert not leaks(reply)
    return reply.is_cut and b"auditor_failure" in reply.data


def test_killed_in_mid_stream(running):
    watch = running.watch()
    with running.asking("harmful-when-told") as rest:
        running.auditor.kill()
        running.upstream.get("/mode/harm")
        assert failed_closed(rest())
    assert watch.logs("audit failed", kind="unreachable")
    assert watch.counts("audit_failures_total", kind="unreachable")


def test_down_from_the_start(running):
    watch = running.watch()
    running.auditor.kill()
    reply = running.ask("harmful")
    assert failed_closed(reply)
    assert not any(word in reply.text for word in WORDS)
    assert watch.logs("audit failed", kind="unreachable")
    assert watch.counts("audit_failures_total", kind="unreachable")


def test_stopped_in_mid_stream(running):
    watch = running.watch()
    with running.asking("harmful-when-told") as rest:
        running.auditor.signal(signal.SIGSTOP)
        running.upstream.get("/mode/harm")
        reply = rest()
    assert failed_closed(reply)
    assert reply.seconds >= TIMEOUT_MS / 1000
    assert watch.logs("audit failed", kind="timeout")
    assert watch.counts("audit_failures_total", kind="timeout")


@pytest.mark.parametrize(
    ("mode", "kind"), [("hang", "timeout"), ("garbage", "unreadable"), ("half-close", "unreachable")]
)
def test_hangs_writes_garbage_or_breaks_off(running, mode, kind):
    watch = running.watch()
    running.auditor.get(f"/mode/{mode}")
    assert failed_closed(running.ask("harmful"))
    assert failed_closed(running.ask("fine"))
    assert watch.logs("audit failed", kind=kind)
    assert watch.counts("audit_failures_total", kind=kind)


def test_slow(running):
    watch = running.watch()
    running.auditor.get("/mode/slow")
    assert running.ask("slow").is_fine
    assert watch.counts("hold_seconds_count")
    reply = running.ask("slow-harmful")
    assert reply.is_cut
    assert not leaks(reply)


def test_an_outage_of_some_length_opens_the_circuit_and_its_end_closes_it(running):
    watch = running.watch()
    assert running.shows("auditor_circuit", 1, state="closed")
    running.auditor.signal(signal.SIGSTOP)
    replies = [running.ask("harmful") for _ in range(7)]
    assert all(failed_closed(reply) for reply in replies)
    assert watch.logs("auditor circuit open")
    assert running.shows("auditor_circuit", 0, state="closed")
    assert min(reply.seconds for reply in replies[-2:]) < TIMEOUT_MS / 1000
    running.auditor.signal(signal.SIGCONT)
    time.sleep(FIRST_PAUSE_SECONDS)
    running.well()
    assert watch.logs("auditor circuit closed")
    assert running.shows("auditor_circuit", 1, state="closed")


def test_a_fallback_takes_over_in_mid_stream_and_gives_back(with_fallback):
    with_fallback.well()
    watch = with_fallback.watch()
    with with_fallback.asking("slow") as rest:
        with_fallback.auditor.kill()
        assert rest().is_fine
    # It is tried again after each pause, by whoever asks then.
    assert eventually(lambda: with_fallback.ask("fine").is_fine and left_out(with_fallback) == 1, SETTLE_SECONDS)
    assert watch.logs("auditor replica left out")
    reply = with_fallback.ask("harmful")
    assert reply.is_cut
    assert not leaks(reply)
    with_fallback.auditor.start()
    assert eventually(
        lambda: with_fallback.ask("fine").is_fine and with_fallback.auditor.get("/state")["asked"] > 0, SETTLE_SECONDS
    )
    assert watch.logs("auditor replica is back")
    assert left_out(with_fallback) == 0


def left_out(running: Rig) -> float:
    return running.metrics().value("guardtrace_auditor_replicas_left_out")


def test_with_both_auditors_out_it_fails_closed(with_fallback):
    with_fallback.well()
    watch = with_fallback.watch()
    with with_fallback.asking("harmful-when-told") as rest:
        with_fallback.auditor.signal(signal.SIGSTOP)
        with_fallback.second.kill()
        with_fallback.upstream.get("/mode/harm")
        assert failed_closed(rest())
    assert watch.logs("audit failed")
    assert watch.counts("audit_failures_total")
    with_fallback.well()
    assert with_fallback.settles()
