"""`upstreams.NAME.cache_salt: tenant`: tenants are kept apart in the prefix cache of an upstream that they share."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from guardtrace_proxy.auditor.salts import OF_ALL_WORKERS, Salts
from guardtrace_proxy.server.cache_salt import with_cache_salt
from tests.server.running import ask, proxy
from tests.server.scripted import http, model_server

KEYS = ("acme", "other")
TENANTS = {name: {"policy": "test", "keys": ["sha256:" + hashlib.sha256(name.encode()).hexdigest()]} for name in KEYS}


@pytest.fixture(scope="module")
def running():
    with model_server(lambda _: [http(429, "{}")]) as upstream:
        default = {"base_url": upstream.url, "cache_salt": "tenant"}
        config = {"tenants": {**TENANTS, "all": {"policy": "test"}}, "upstreams": {"default": default}}
        with proxy(lambda _: [], config=config) as running:
            yield replace(running, upstream=upstream)


def salt_of(running, key: str, body: dict | None = None, path: str = "/chat/completions") -> str:
    headers = {"authorization": f"Bearer {key}", "anthropic-version": "2023-06-01"}
    running.raw(body or ask(), path, headers=headers)
    return str(running.upstream.bodies[-1]["cache_salt"])


def test_each_tenant_has_a_salt_of_its_own_that_doesnt_name_it(running):
    salts = [salt_of(running, key) for key in ("acme", "other", "EMPTY", "acme")]
    assert salts[0] == salts[3]
    assert len(set(salts)) == 3
    hashed = {hashlib.sha256(name.encode()).hexdigest() for name in (*KEYS, "all")}
    assert not hashed & set(salts)
    assert not any(name in salt for salt in salts for name in KEYS)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/responses", {"model": "m", "input": "Hello."}),
        ("/messages", {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "Hello."}]}),
        ("/completions", {"model": "m", "prompt": "Hello."}),
    ],
)
def test_whatever_it_asks_by_a_tenants_salt_is_the_same(running, path, body):
    assert salt_of(running, "acme", body, path) == salt_of(running, "acme")


def test_a_clients_own_salt_separates_within_its_tenant(running):
    plain, one, two = (
        salt_of(running, "acme", ask(**own)) for own in ({}, {"cache_salt": "one"}, {"cache_salt": "two"})
    )
    assert len({plain, one, two, "one", "two"}) == 5
    assert salt_of(running, "other", ask(cache_salt=one)) not in (plain, one, two)
    assert salt_of(running, "other", ask(cache_salt="one")) != one


def test_everything_else_keeps_its_bytes():
    body = b'{ "model":"m",  "temperature": 0.10, "messages": [ {"role":"user", "content":"\\u00e9"} ],"n":1 }'
    salted = with_cache_salt(body, "acme", Salts())
    for kept in (b'"temperature":0.10', b'[ {"role":"user", "content":"\\u00e9"} ]', b'"n":1'):
        assert kept in salted


def test_workers_have_one_secret_and_installations_have_none_in_common():
    assert Salts(OF_ALL_WORKERS).of("acme") == Salts(OF_ALL_WORKERS).of("acme")
    assert Salts().of("acme") != Salts(OF_ALL_WORKERS).of("acme")


def test_by_default_a_clients_salt_passes_as_it_is():
    with proxy(lambda _: [http(429, "{}")]) as running:
        running.raw(ask(cache_salt="mine"))
        running.raw(ask())
    assert [body.get("cache_salt") for body in running.upstream.bodies] == ["mine", None]
