"""What a tenant may ask for, and what it is told beyond that."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import anthropic
import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardtrace_proxy.server.errors import ApiError
from guardtrace_proxy.server.limits import Bucket, Limits
from guardtrace_proxy.server.settings import LimitSettings
from tests.server.running import Running, ask, proxy
from tests.server.scripted import SSE_HEAD, completion, held_up, stream

FINE = [completion("well then", "fine")]
FRAMES = stream("All is quite fine with this one here.", "Four.")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def refusal(limits: Limits, settings: LimitSettings) -> tuple[int, bytes] | None:
    """The status and the pause that a request is told, if it is refused."""
    try:
        with limits.request("acme", settings):
            return None
    except ApiError as error:
        return error.status, dict(error.headers)[b"retry-after"]


@given(st.integers(1, 1000), st.lists(st.tuples(st.floats(0, 30), st.integers(1, 20)), max_size=60))
def test_never_more_than_a_minutes_worth_and_the_rate(rate, asks):
    clock = Clock()
    bucket = Bucket(clock)
    began, taken = clock.now, 0
    for pause, amount in asks:
        clock.now += pause
        if bucket.wait(amount, rate) == 0:
            bucket.take(amount, rate)
            taken += amount
        assert taken <= rate + (clock.now - began) * rate / 60 + 1e-6


@given(st.integers(1, 1000), st.integers(0, 5000))
def test_what_is_told_to_wait_is_enough_and_not_too_much(rate, taken):
    clock = Clock()
    bucket = Bucket(clock)
    bucket.take(taken, rate)
    wait = bucket.wait(1, rate)
    clock.now += wait
    assert bucket.wait(1, rate) == pytest.approx(0, abs=1e-6)
    if wait > 1:
        clock.now -= 1
        bucket = Bucket(clock)
        bucket.take(taken, rate)
        assert bucket.wait(1, rate) > 0


def test_requests_a_minute():
    clock = Clock()
    limits, settings = Limits(clock), LimitSettings(requests_per_minute=2)
    assert [refusal(limits, settings) for _ in range(3)] == [None, None, (429, b"30")]
    clock.now += 29.5
    assert refusal(limits, settings) == (429, b"1")
    clock.now += 0.5
    assert refusal(limits, settings) is None


def test_tokens_are_taken_as_they_come_and_debts_are_paid():
    clock = Clock()
    limits, settings = Limits(clock), LimitSettings(tokens_per_minute=60)
    with limits.request("acme", settings) as use:
        use.prompt(["four" * 10, "x"])
        use.reply(20)
        assert refusal(limits, settings) is None
        use.reply(79)
    assert refusal(limits, settings) == (429, b"31")  # 90 of 60 are taken
    clock.now += 31
    assert refusal(limits, settings) is None


def test_a_change_of_the_rate_counts_at_once_and_forgets_nothing():
    clock = Clock()
    limits = Limits(clock)
    assert [refusal(limits, LimitSettings(requests_per_minute=1)) for _ in range(2)] == [None, (429, b"60")]
    assert refusal(limits, LimitSettings(requests_per_minute=120)) == (429, b"1")
    assert refusal(limits, LimitSettings()) is None


def test_tenants_dont_share():
    limits, settings = Limits(), LimitSettings(concurrent=1, requests_per_minute=1)
    with limits.request("acme", settings), limits.request("other", settings):
        assert (limits.running("acme"), limits.running("other"), limits.running("nobody")) == (1, 1, 0)
    assert limits.running("acme") == 0


# Over sockets

KEY = "sha256:" + hashlib.sha256(b"gt-acme").hexdigest()


def config(**limits: int) -> dict[str, Any]:
    return {"tenants": {"all": {"policy": "test"}, "acme": {"policy": "test", "keys": [KEY], "limits": limits}}}


AS_ACME = {"authorization": "Bearer gt-acme"}


@contextmanager
def held(running: Running, count: int, end: threading.Event) -> Iterator[None]:
    """So many of acme's streams under way."""
    with ExitStack() as stack:
        for _ in range(count):
            url = running.url + "/v1/chat/completions"
            reply = stack.enter_context(
                httpx.stream("POST", url, json=ask(stream=True), headers=AS_ACME, trust_env=False, timeout=30)
            )
            assert reply.status_code == 200
        yield
        end.set()


def test_so_many_at_once_and_the_next_when_one_has_ended():
    end = threading.Event()

    with proxy(held_up(FRAMES, end), config=config(concurrent=2)) as running:
        with held(running, 2, end):
            refused = running.raw(ask(stream=True), headers=AS_ACME)
            assert refused.status_code == 429
            assert refused.headers["retry-after"] == "1"
            assert refused.json()["error"] == {
                "message": "This key's tenant may have 2 requests at once (tenants.*.limits.concurrent). Try again in 1 s.",
                "type": "rate_limit_error",
                "param": None,
                "code": "rate_limit_exceeded",
            }
            end.set()
            assert running.raw(ask(stream=True)).status_code == 200  # another tenant
        assert running.raw(ask(stream=True), headers=AS_ACME).status_code == 200
        assert running.app.service.limits.running("acme") == 0


def test_each_dialects_client_raises_its_own_error():
    with proxy(lambda _: FINE, config=config(requests_per_minute=1)) as running:
        assert running.raw(ask(), headers=AS_ACME).status_code == 200
        client = openai.OpenAI(base_url=running.url + "/v1", api_key="gt-acme", max_retries=0)
        with pytest.raises(openai.RateLimitError) as chat:
            client.chat.completions.create(model="m", messages=[{"role": "user", "content": "?"}])
        with pytest.raises(openai.RateLimitError):
            client.responses.create(model="m", input="?")
        with pytest.raises(openai.RateLimitError):
            client.completions.create(model="m", prompt="?")
        with pytest.raises(anthropic.RateLimitError) as messages:
            anthropic.Anthropic(base_url=running.url, api_key="gt-acme", max_retries=0).messages.create(
                model="m", max_tokens=5, messages=[{"role": "user", "content": "?"}]
            )
        assert len(running.upstream.requests) == 1
    assert chat.value.code == "rate_limit_exceeded"
    assert messages.value.body["error"]["type"] == "rate_limit_error"
    assert 1 <= int(messages.value.response.headers["retry-after"]) <= 60


def test_the_official_client_comes_back_after_the_pause():
    with proxy(lambda _: FINE, config=config(requests_per_minute=60)) as running:
        tenant = running.app.service.limits._tenants["acme"]
        tenant.requests.take(60, 60)
        client = openai.OpenAI(base_url=running.url + "/v1", api_key="gt-acme", max_retries=2)
        reply = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "?"}])
        assert reply.choices[0].message.content == "fine"


def test_a_long_reply_runs_to_its_end_and_the_next_request_waits():
    frames = [SSE_HEAD, *stream("fine " * 100, "Four.")]
    with proxy(lambda _: frames, config=config(tokens_per_minute=60)) as running:
        assert running.raw(ask(stream=True), headers=AS_ACME).content == b"".join(frames[1:])
        refused = running.raw(ask(stream=True), headers=AS_ACME)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) > 60
