"""The upstream is killed, stopped, slow, writes garbage, half-closes: no marker leaves, nothing hangs, nothing looks finished."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.faults.rig import LONGEST_SECONDS, READ_TIMEOUT_MS, Reply, Rig, leaks, rig


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


def test_killed_in_mid_stream(running):
    with running.asking("slow-harmful") as rest:
        running.upstream.kill()
        assert broke_off(rest())
    assert "upstream broke off" in running.log()


def test_down_then_back(running):
    running.upstream.kill()
    reply = running.ask("fine")
    assert (reply.status, reply.error) == (502, "upstream_unreachable")
    assert "upstream asked again" in running.log()
    running.upstream.start()
    assert running.ask("fine").is_fine


def test_stopped_in_mid_stream(running):
    with running.asking("slow-harmful") as rest:
        running.upstream.signal(signal.SIGSTOP)
        reply = rest()
    assert broke_off(reply)
    assert reply.seconds >= READ_TIMEOUT_MS / 1000


def test_stopped_before_its_head(running):
    running.upstream.signal(signal.SIGSTOP)
    reply = running.ask("fine")
    assert (reply.status, reply.error) == (504, "upstream_timeout")


def test_hangs_before_its_head(running):
    reply = running.ask("hang-before-head")
    assert (reply.status, reply.error) == (504, "upstream_timeout")
    given_up = running.upstream.get("/state")["given_up"]
    assert given_up >= 1


def test_hangs_in_mid_stream(running):
    assert broke_off(running.ask("hang-in-mid"))


def test_sends_comments_alone(running):
    reply = running.ask("comments-for-ever")
    assert broke_off(reply)
    assert reply.seconds >= READ_TIMEOUT_MS / 1000


def test_slow(running):
    assert running.ask("slow").is_fine


@pytest.mark.parametrize("model", ["garbage-event", "garbage-framing", "half-close", "reset"])
def test_writes_what_cant_be_read_or_breaks_off(running, model):
    assert broke_off(running.ask(model))


def test_garbage_in_place_of_http(running):
    reply = running.ask("garbage-head")
    assert (reply.status, reply.error) == (502, "upstream_unreachable")
    assert not leaks(reply)


def test_harm_is_cut_and_the_upstream_closed(running):
    before = running.upstream.get("/state")["given_up"]
    reply = running.ask("slow-harmful")
    assert reply.is_cut
    assert not leaks(reply)
    assert running.settles()
    assert running.upstream.get("/state")["given_up"] == before + 1
