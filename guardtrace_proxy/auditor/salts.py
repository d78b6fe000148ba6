"""Cache salts: what keeps a tenant's prompts its own in a prefix cache that all tenants share."""

from __future__ import annotations

import hashlib
import hmac
import secrets


class Salts:
    """Made with a secret of the process, so that a salt says nothing about a tenant's name."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def of(self, tenant: str) -> str:
        """The tenant's salt."""
        return hmac.new(self._key, tenant.encode(), hashlib.sha256).hexdigest()
