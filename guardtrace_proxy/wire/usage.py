"""Usage as it leaves in what the proxy writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from guardtrace_proxy.wire.strings import PLAIN_KEY


def only_counts(usage: Mapping[str, Any]) -> dict[str, Any]:
    """Usage without anything that isn't a count."""
    shown: dict[str, Any] = {}
    for key, value in usage.items():
        if not PLAIN_KEY.fullmatch(key):
            continue
        if isinstance(value, Mapping):
            shown[key] = only_counts(value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            shown[key] = value
    return shown
