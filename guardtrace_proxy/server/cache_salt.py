"""A tenant's own salt in the upstream's prefix cache: all tenants ask it with one key, so it can't tell them apart."""

from __future__ import annotations

import msgspec

from guardtrace_proxy.auditor.salts import Salts
from guardtrace_proxy.wire.raw_json import RawFields, as_raw

FIELD = "cache_salt"
"""Of vLLM's and SGLang's: prefixes are shared only between requests with the same value."""


def with_cache_salt(body: bytes, tenant: str, salts: Salts) -> bytes:
    """The body with the tenant's salt; one that the client sent goes into it, so that it separates within the tenant.

    Everything else keeps its bytes.
    """
    fields = msgspec.json.decode(body, type=RawFields)
    own = bytes(fields.get(FIELD, b"")).decode()
    salt = salts.of(msgspec.json.encode([tenant, own]).decode())
    return msgspec.json.encode({**fields, FIELD: as_raw(salt)})
