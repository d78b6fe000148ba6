"""Routes, keys, health, and what a start refuses."""

from __future__ import annotations

import hashlib
import threading

import httpx
import openai
import pytest

from guardtrace_proxy.server.app import GuardTraceApp
from tests.server.running import ask, proxy
from tests.server.scripted import SSE_HEAD, http, stream
from tests.waiting import eventually

FRAMES = stream("All is fine.", "Four.")
MODELS = '{"object": "list", "data": [{"id": "thinker", "object": "model", "created": 1, "owned_by": "x"}]}'


def replay(request):
    return [SSE_HEAD, *FRAMES] if request else [http(200, MODELS)]


def digest(key: str) -> str:
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/embeddings"),
        ("POST", "/v1/chat/completions/"),
        ("GET", "/v1/completions"),
        ("GET", "/v1/chat/completions"),
        ("GET", "/"),
        ("GET", "/v1/x/.."),
    ],
)
def test_routes_that_arent_audited_are_refused(method, path):
    with proxy(replay) as running, httpx.Client(trust_env=False) as client:
        reply = client.request(method, running.url + path)
        assert running.upstream.requests == []
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "unknown_url")


def test_models_are_the_upstreams():
    with proxy(replay) as running:
        assert [model.id for model in running.client.models.list()] == ["thinker"]


def test_a_list_of_models_counts_as_a_request_and_ends_with_its_client():
    end = threading.Event()

    def hangs(_):
        end.wait(60)
        yield http(200, MODELS)

    limits = {"concurrent": 1, "requests_per_minute": 2}
    tenants = {"all": {"policy": "test", "limits": limits}}
    with proxy(hangs, config={"tenants": tenants}) as running, httpx.Client(trust_env=False) as client:
        url = running.url + "/v1/models"
        with pytest.raises(httpx.ReadTimeout):
            client.get(url, timeout=0.5)
        assert eventually(lambda: running.app.service.shedding.running == 0)
        assert running.app.service.limits.running("all") == 0
        end.set()
        assert client.get(url).json()["data"][0]["id"] == "thinker"
        assert client.get(url).status_code == 429


def test_health_and_readiness():
    with proxy(replay) as running, httpx.Client(trust_env=False) as client:
        assert client.get(running.url + "/healthz").json() == {"status": "ok"}
        for _ in range(200):
            ready = client.get(running.url + "/readyz")
            if ready.status_code == 200:
                break
        assert ready.json()["auditor"]["probe"] == "ok"


def two_tenants() -> dict:
    tenants = {
        "acme": {"keys": [digest("gt-acme"), digest("gt-acme-2")], "policy": "test"},
        "labs": {"keys": [digest("gt-labs")], "policy": "monitor"},
    }
    return {"tenants": tenants, "anonymous_tenant": None}


def test_keys_find_their_tenants_policy():
    with proxy(replay, config=two_tenants()) as running:
        for key, policy in (("gt-acme", "test"), ("gt-acme-2", "test"), ("gt-labs", "monitor")):
            reply = running.raw(ask(stream=True), headers={"authorization": f"Bearer {key}"})
            assert reply.headers["x-guardtrace-policy"] == policy


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Basic Z3QtYWNtZTp4", "gt-acme", "Bearer gt-acme extra"])
def test_other_keys_are_refused_without_being_repeated(header):
    with proxy(replay, config=two_tenants()) as running:
        reply = running.raw(ask(stream=True), headers={"authorization": header} if header else {})
        assert running.upstream.requests == []
    assert reply.status_code == 401
    assert reply.json()["error"]["code"] == "invalid_api_key"
    assert "wrong" not in reply.text


def test_the_official_client_raises_an_authentication_error():
    with proxy(replay, config=two_tenants()) as running, pytest.raises(openai.AuthenticationError):
        running.client.chat.completions.create(**ask())


def test_request_ids_are_kept_or_made():
    with proxy(replay) as running:
        assert running.raw(ask(stream=True), headers={"x-request-id": "abc.1"}).headers["x-request-id"] == "abc.1"
        made = running.raw(ask(stream=True), headers={"x-request-id": "a b\tc"}).headers["x-request-id"]
        assert made != "a b\tc"
        assert len(made) == 16


def test_the_auditor_in_the_headers_is_no_path():
    config = {"auditor": {"model": "/srv/models/guard-v2"}}
    with proxy(replay, config=config) as running:
        reply = running.raw(ask(stream=True))
        assert running.auditor.bodies[-1]["model"] == "/srv/models/guard-v2"
    assert reply.headers["x-guardtrace-auditor"] == "guard-v2"


def test_headers_and_object_can_be_turned_off():
    policy = {"expose": {"headers": False, "object": False}}
    with proxy(lambda _: [SSE_HEAD, *stream("The HARM in steps.", "No.")], policy=policy) as running:
        reply = running.raw(ask(stream=True))
    assert not [name for name in reply.headers if name.startswith("x-guardtrace")]
    assert b"guardtrace" not in reply.content


def test_what_is_held_is_bounded_over_all_replies():
    with proxy(replay, config={"server": {"max_total_bytes": 1024}}) as running:
        app: GuardTraceApp = running.app
        with app.service.budget.counting(lambda: 2000):
            reply = running.raw(ask(stream=True))
        assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
        assert running.raw(ask(stream=True)).status_code == 200
        assert eventually(lambda: app.service.budget.total == 0)
