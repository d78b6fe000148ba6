"""Who a key belongs to (ruling 7)."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from guardtrace_proxy.server.config import load_config
from guardtrace_proxy.server.tenants import PLACEHOLDERS, Tenants

KEYS = {"acme": ["gt-acme", "gt-acme-old"], "öre": ["gt-öre"], "guest": []}


def make(folder: Path, anonymous: str | None = None) -> Tenants:
    hashes = {
        name: [f"sha256:{hashlib.sha256(key.encode()).hexdigest()}" for key in keys] for name, keys in KEYS.items()
    }
    content = {
        "upstreams": {"default": {"base_url": "http://a/v1"}, "other": {"base_url": "http://b/v1"}},
        "auditor": {"base_url": "http://c/v1"},
        "tenants": {
            "acme": {"keys": hashes["acme"], "policy": "strict", "upstream": "other"},
            "öre": {"keys": [value.upper().replace("SHA", "sha") for value in hashes["öre"]], "policy": "balanced"},
            "guest": {"policy": "monitor"},
        },
        "anonymous_tenant": anonymous,
    }
    path = folder / "guardtrace.yaml"
    path.write_text(yaml.safe_dump(content), "utf-8")
    return Tenants(load_config(path, {}))


def name_of(tenants: Tenants, authorization: str | None) -> str | None:
    tenant = tenants.of(authorization)
    return None if tenant is None else tenant.name


def test_a_known_key_is_its_tenant_with_policy_and_upstream(tmp_path):
    for key, expected in {
        "gt-acme": ("acme", "strict", "other"),
        "gt-acme-old": ("acme", "strict", "other"),
        "gt-öre": ("öre", "balanced", "default"),
    }.items():
        found = make(tmp_path).of(f"Bearer {key}")
        assert found is not None
        assert (found.name, found.policy, found.upstream) == expected


@pytest.mark.parametrize("header", ["bearer gt-acme", "BEARER gt-acme", "Bearer   gt-acme  "])
def test_the_scheme_is_read_as_http_reads_it(tmp_path, header):
    assert name_of(make(tmp_path), header) == "acme"


@pytest.mark.parametrize("anonymous", [None, "guest"])
@pytest.mark.parametrize(
    "header",
    ["Bearer gt-unknown", "Bearer gt-acme2", "Bearer gt-acm", "gt-acme", "Basic gt-acme", "Bearer GT-ACME", "x"],
)
def test_an_unknown_key_is_nobody_always(tmp_path, header, anonymous):
    assert make(tmp_path, anonymous).of(header) is None


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", *(f"Bearer {word}" for word in sorted(PLACEHOLDERS))]
)
def test_no_key_and_placeholders_are_the_anonymous_tenant_if_there_is_one(tmp_path, header):
    assert make(tmp_path).of(header) is None
    assert name_of(make(tmp_path, "guest"), header) == "guest"


@pytest.mark.parametrize(
    ("authorization", "api_key", "tenant"),
    [
        (None, "gt-acme", "acme"),
        (None, " gt-acme ", "acme"),
        ("Bearer gt-acme", "gt-acme", "acme"),
        ("Bearer gt-acme", "gt-acme-old", "acme"),
        ("Bearer EMPTY", "gt-acme", "acme"),
        ("Bearer gt-acme", "EMPTY", "acme"),
        (None, "EMPTY", "guest"),
        (None, "", "guest"),
        ("Bearer gt-acme", "gt-öre", None),
        ("Bearer gt-acme", "gt-unknown", None),
        ("Bearer gt-unknown", "gt-acme", None),
        ("Basic gt-acme", "gt-acme", None),
        (None, "Bearer gt-acme", None),
    ],
)
def test_a_key_in_either_header_counts_and_two_must_agree(tmp_path, authorization, api_key, tenant):
    found = make(tmp_path, "guest").of(authorization, api_key)
    assert (found and found.name) == tenant


def test_records_can_tell_a_tenants_keys_apart(tmp_path):
    tenants = make(tmp_path, "guest")
    found = [tenants.of(header) for header in ("Bearer gt-acme", "Bearer gt-acme-old", "Bearer gt-öre", None)]
    digests = [hashlib.sha256(key.encode()).hexdigest()[:8] for key in ("gt-acme", "gt-acme-old", "gt-öre")]
    assert [tenant and tenant.key for tenant in found] == [*digests, None]


def test_a_placeholder_in_other_letters_is_a_key(tmp_path):
    assert make(tmp_path, "guest").of("Bearer Empty") is None


def test_every_hash_is_compared_whole_whichever_fits(tmp_path, monkeypatch):
    tenants = make(tmp_path)
    compared = []

    def count(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return hmac.compare_digest(a, b)

    monkeypatch.setattr("guardtrace_proxy.server.tenants.hmac", type("counting", (), {"compare_digest": count}))
    for header in ("Bearer gt-acme", "Bearer gt-öre", "Bearer nobody"):
        compared.clear()
        tenants.of(header)
        assert len(compared) == 3
        assert {len(side) for pair in compared for side in pair} == {32}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return make(tmp_path_factory.mktemp("tenants"))


@given(st.text(max_size=40))
def test_no_header_is_a_tenant_that_it_has_no_key_of(plain, header):
    known = {key for keys in KEYS.values() for key in keys}
    if header.partition(" ")[2].strip() not in known:
        assert plain.of(header) is None
