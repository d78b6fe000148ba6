"""Cache salts: what keeps a tenant's prompts its own in a prefix cache that all tenants share."""

from __future__ import annotations

import hashlib
import hmac
import secrets

OF_ALL_WORKERS = secrets.token_bytes(32)
"""Made before workers are forked, so that they have it in common."""


class Salts:
    """Made with a secret, so that a salt says nothing about a tenant's name; without ``key``, with one of its own."""

    def __init__(self, key: bytes | None = None) -> None:
        self._key = secrets.token_bytes(32) if key is None else key

    def of(self, tenant: str) -> str:
        """The tenant's salt."""
        return hmac.new(self._key, tenant.encode(), hashlib.sha256).hexdigest()
