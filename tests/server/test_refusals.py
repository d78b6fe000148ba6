"""The log's line of a request that was refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import structlog

from guardtrace_proxy.policy.loading import PRESETS, load_policy
from guardtrace_proxy.server.errors import ApiError, overloaded, unauthorized
from guardtrace_proxy.server.refusals import KEYLESS_LINES, KEYLESS_SECONDS, Refusals
from guardtrace_proxy.server.settings import LimitSettings
from guardtrace_proxy.server.tenants import Tenant
from guardtrace_proxy.telemetry.logs import configure_own_logging
from tests.server.running import Running, ask, connected, proxy
from tests.server.scripted import completion, http
from tests.server.test_app import digest
from tests.structlog_state import no_structlog

NOT_FOUND = json.dumps({"error": {"message": "no numbat here", "code": "model_not_found"}})
ACME = {"tenants": {"acme": {"policy": "test", "keys": [digest("gt-acme")]}}, "anonymous_tenant": None}
KEY = {"authorization": "Bearer gt-acme"}
ANYONE = Tenant("all", None, "balanced", "default", LimitSettings(), load_policy(PRESETS / "balanced.yaml"))


@contextmanager
def logging(script: Callable[[dict[str, Any]], list[bytes]], **options: Any) -> Iterator[Running]:
    with no_structlog():
        assert configure_own_logging("json", "info")
        with proxy(script, **options) as running:
            yield running


def refused(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    return [line for line in lines if line["event"] == "request refused"]


def fine(_: object) -> list[bytes]:
    return [completion("well then", "fine")]


def test_each_refusal_of_a_tenant_is_found_by_its_request_id(capsys):
    limits = {"tenants": {"acme": {**ACME["tenants"]["acme"], "limits": {"requests_per_minute": 1}}}}

    def script(_):
        return [http(404, NOT_FOUND)]

    with logging(script, config={**ACME, **limits}) as running:
        sent = [
            running.raw(ask(), headers={**KEY, "x-request-id": "of-upstream"}),
            running.raw(ask(), headers={**KEY, "x-request-id": "too-many"}),
        ]
    with logging(fine, config=ACME) as running:
        sent += [
            running.raw(ask(quokka="quokka"), headers={**KEY, "x-request-id": "unknown-field"}),
            running.raw(ask(n=0), headers={**KEY, "x-request-id": "n"}),
            running.raw(ask(), headers={"x-request-id": "no-key"}),
            running.raw(ask(), "/quokka?quokka=1", headers={**KEY, "x-request-id": "no-route"}),
        ]
    assert [reply.status_code for reply in sent] == [404, 429, 400, 400, 401, 404]
    chat = "/v1/chat/completions"
    lines = refused(capsys)
    assert [(x["request_id"], x["status"], x["code"], x["tenant"], x["route"], x["level"]) for x in lines] == [
        ("of-upstream", 404, "model_not_found", "acme", chat, "info"),
        ("too-many", 429, "rate_limit_exceeded", "acme", chat, "info"),
        ("unknown-field", 400, "invalid_value", "acme", chat, "info"),
        ("n", 400, "invalid_value", "acme", chat, "info"),
        ("no-key", 401, "invalid_api_key", None, chat, "info"),
        ("no-route", 404, "unknown_url", None, "other", "info"),
    ]
    assert [line["key"] for line in lines] == [*4 * [digest("gt-acme")[7:15]], None, None]
    assert not any(word in json.dumps(lines) for word in ("quokka", "numbat", "gt-acme"))


def test_an_upstream_that_is_down_is_a_warning(capsys):
    down = {"upstreams": {"default": {"base_url": "http://127.0.0.1:9/v1", "retries": 0}}}
    with logging(fine, config={**ACME, **down}) as running:
        assert running.raw(ask(), headers=KEY).status_code == 502
    [line] = refused(capsys)
    assert (line["status"], line["code"], line["tenant"], line["level"]) == (
        502,
        "upstream_unreachable",
        "acme",
        "warning",
    )


def test_a_flood_without_a_key_is_bounded(capsys):
    with logging(fine, config=ACME) as running, connected(running) as connection:
        for _ in range(10 * KEYLESS_LINES):
            with connection.send_chat(ask()) as reply:
                assert (reply.status, bool(reply.read())) == (401, True)
        assert running.raw(ask(n=0), headers=KEY).status_code == 400
    lines = refused(capsys)
    assert lines[-1]["tenant"] == "acme"
    assert KEYLESS_LINES < len(lines) <= 5 * KEYLESS_LINES  # a machine that is slow has some windows


def test_the_line_after_a_flood_says_how_many_were_left_out():
    now = 0.0
    refusals = Refusals(lambda: now)
    with structlog.testing.capture_logs() as told:
        for _ in range(KEYLESS_LINES + 7):
            refusals.say(unauthorized(), "/v1/messages", None)
        now = KEYLESS_SECONDS
        refusals.say(ApiError(400, "bad"), "/v1/messages", ANYONE)
    levels = [line["log_level"] for line in told]
    assert levels == KEYLESS_LINES * ["info"] + 7 * ["debug"] + ["info"]
    assert (told[-1]["left_out"], told[-1]["tenant"], told[-1]["key"]) == (7, "all", None)


def test_what_has_a_line_of_its_own_gets_no_other():
    with structlog.testing.capture_logs() as told:
        Refusals().say(overloaded("server.max_concurrent"), "/v1/messages", ANYONE)
    assert told == []
