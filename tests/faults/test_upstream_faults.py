"""The upstream is killed, stopped, slow, writes garbage, half-closes: no marker leaves, nothing hangs, nothing looks finished."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.faults.rig import LONGEST_SECONDS, READ_TIMEOUT_MS, SETTLE_SECONDS, Reply, Rig, leaks, rig
from tests.waiting import eventually


@pytest.fixture(scope="module")
def running(tmp_path_factory) -> Iterator[Rig]:
    with rig(tmp_path_factory.mktemp("faults")) as built:
        yield built


@pytest.fixture(autouse=True)
def _settled(running: Rig) -> Iterator[None]:
    running.well()
    yield
    assert running.settles()
    running.well()


def broke_off(reply: Reply) -> bool:
    """It says that it isn't whole, and shows no marker."""
    assert not leaks(reply)
    return reply.error == "upstream_error" and not reply.is_finished and reply.seconds < LONGEST_SECONDS


def given_up(running: Rig) -> int:
    return int(running.upstream.get("/state")["given_up"])


def test_killed_in_mid_stream(running):
    watch = running.watch()
    with running.asking("endless") as rest:
        running.upstream.kill()
        assert broke_off(rest())
    assert watch.logs("upstream broke off")
    assert watch.logs("reply", end="broken_off")
    assert watch.counts("replies_total", end="broken_off")


def test_down_then_back(running):
    watch = running.watch()
    running.upstream.kill()
    reply = running.ask("fine")
    assert (reply.status, reply.error) == (502, "upstream_unreachable")
    assert watch.logs("upstream asked again")
    assert watch.logs("request refused", status=502, level="warning")
    assert watch.counts("errors_total", status="502")
    running.upstream.start()
    assert running.ask("fine").is_fine


def test_stopped_in_mid_stream(running):
    watch = running.watch()
    with running.asking("endless") as rest:
        running.upstream.signal(signal.SIGSTOP)
        reply = rest()
    assert broke_off(reply)
    assert reply.seconds >= READ_TIMEOUT_MS / 1000
    assert watch.logs("upstream broke off")
    assert watch.counts("replies_total", end="broken_off")


def test_stopped_before_its_head(running):
    watch = running.watch()
    running.upstream.signal(signal.SIGSTOP)
    reply = running.ask("fine")
    assert (reply.status, reply.error) == (504, "upstream_timeout")
    assert watch.counts("errors_total", status="504")


def test_hangs_before_its_head(running):
    watch, before = running.watch(), given_up(running)
    reply = running.ask("hang-before-head")
    assert (reply.status, reply.error) == (504, "upstream_timeout")
    assert watch.logs("request refused", status=504)
    assert watch.counts("errors_total", status="504")
    assert eventually(lambda: given_up(running) == before + 1, SETTLE_SECONDS)


def test_hangs_in_mid_stream(running):
    watch = running.watch()
    assert broke_off(running.ask("hang-in-mid"))
    assert watch.logs("upstream broke off")
    assert watch.counts("replies_total", end="broken_off")


def test_sends_comments_alone(running):
    watch = running.watch()
    reply = running.ask("comments-for-ever")
    assert broke_off(reply)
    assert watch.logs("upstream broke off")
    assert watch.counts("replies_total", end="broken_off")
    assert reply.seconds >= READ_TIMEOUT_MS / 1000


def test_slow(running):
    assert running.ask("slow").is_fine


@pytest.mark.parametrize("model", ["garbage-event", "garbage-framing", "half-close", "reset"])
def test_writes_what_cant_be_read_or_breaks_off(running, model):
    watch = running.watch()
    assert broke_off(running.ask(model))
    assert model == "garbage-event" or watch.logs("upstream broke off")
    assert watch.counts("replies_total", end="broken_off")


def test_breaks_off_behind_what_a_verdict_cuts(running):
    reply = running.ask("reset-harmful")
    assert reply.is_cut
    assert not leaks(reply)


def test_garbage_in_place_of_http(running):
    watch = running.watch()
    reply = running.ask("garbage-head")
    assert (reply.status, reply.error) == (502, "upstream_unreachable")
    assert not leaks(reply)
    assert watch.logs("request refused", status=502)
    assert watch.counts("errors_total", status="502")


def test_harm_is_cut_and_the_upstream_closed(running):
    before = given_up(running)
    reply = running.ask("slow-harmful")
    assert reply.is_cut
    assert not leaks(reply)
    assert eventually(lambda: given_up(running) == before + 1, SETTLE_SECONDS)
