"""Tenants by the hash of their key."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

from guardtrace_proxy.policy.loading import LoadedPolicy
from guardtrace_proxy.server.config import Config
from guardtrace_proxy.server.settings import LimitSettings

PLACEHOLDERS = frozenset({"EMPTY", "none", "unused", "anonymous", "sk-no-key-required"})
"""What clients send where a key is demanded and there is none."""


@dataclass(frozen=True, eq=False, slots=True)
class Tenant:
    """Who asks: the names of its policy and of its upstream. ``loaded`` is the policy as it was when the settings were
    read, so a request keeps the one that it began with.

    ``key`` tells its keys apart in records: the first eight hex digits of the hash, None for whoever has none."""

    name: str
    key: str | None
    policy: str
    upstream: str
    limits: LimitSettings
    loaded: LoadedPolicy


class Tenants:
    """Finds the tenant of a request."""

    def __init__(self, config: Config) -> None:
        def tenant(name: str, key: str | None) -> Tenant:
            settings = config.tenants[name]
            policy = config.policies[settings.policy]
            return Tenant(name, key, settings.policy, settings.upstream, settings.limits, policy)

        self._by_hash = [
            (bytes.fromhex(digest), tenant(name, digest[:8].lower()))
            for name, settings in config.tenants.items()
            for digest in (key.removeprefix("sha256:") for key in settings.keys)
        ]
        self.anonymous = None if config.anonymous_tenant is None else tenant(config.anonymous_tenant, None)

    def of(self, authorization: str | None, api_key: str | None = None) -> Tenant | None:
        """The tenant of an ``Authorization`` or an ``x-api-key`` header, or of both where they agree; None for an
        unknown key, or no key where one is needed."""
        scheme, _, bearer = (authorization or "").partition(" ")
        if authorization and scheme.lower() != "bearer":
            return None
        keys = [key.strip() for key in (bearer, api_key or "")]
        found = [self._of_key(key) for key in keys if key and key not in PLACEHOLDERS]
        if not found:
            return self.anonymous
        return found[0] if len({tenant and tenant.name for tenant in found}) == 1 else None

    def _of_key(self, key: str) -> Tenant | None:
        digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
        found = None
        # No early exit: how long it takes says nothing about which hash came near.
        for known, tenant in self._by_hash:
            if hmac.compare_digest(known, digest):
                found = tenant
        return found
