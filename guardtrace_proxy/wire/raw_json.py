"""JSON whose values are left as they are written, for bodies that change in one place and nowhere else."""

from __future__ import annotations

import msgspec

NOT_JSON = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What decoding bytes raises that aren't JSON, or are nested deeper than the interpreter follows."""
RawFields = dict[str, msgspec.Raw]


def begins(raw: msgspec.Raw, sign: bytes) -> bool:
    """Whether a value is a list (``[``), an object, …"""
    return memoryview(raw)[:1] == sign


def as_raw(value: object) -> msgspec.Raw:
    """A value as JSON."""
    return msgspec.Raw(msgspec.json.encode(value))
