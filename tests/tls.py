"""Servers' certificates by an authority that nobody knows but whoever reads its file."""

from __future__ import annotations

import ssl
from pathlib import Path

import trustme


def private_authority(file: Path) -> ssl.SSLContext:
    """What a server on this machine shows; the authority's own certificate is written to ``file``."""
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(file))
    return context
