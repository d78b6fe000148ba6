"""Puts other URLs in the place of a chat request's images."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from guardtrace_proxy.wire.raw_json import RawFields, as_raw, begins


def replace_images(body: bytes, urls: Sequence[str]) -> bytes:
    """The same request with its images' URLs replaced, all of them, in their order.

    Everything else stays as it is written: numbers, escapes and the order of the fields. ``body`` is one that
    ``read_request`` has read.
    """
    left = iter(urls)
    request = msgspec.json.decode(body, type=RawFields)
    messages = msgspec.json.decode(request["messages"], type=list[RawFields])
    for message in messages:
        content = message.get("content")
        if content is None or not begins(content, b"["):
            continue
        parts = msgspec.json.decode(content, type=list[RawFields])
        for part in parts:
            if msgspec.json.decode(part["type"]) == "image_url":
                part["image_url"] = _with_url(part["image_url"], next(left))
        message["content"] = as_raw(parts)
    if next(left, None) is not None:
        raise ValueError("more URLs than image parts: one would stay that wasn't audited")
    request["messages"] = as_raw(messages)
    return msgspec.json.encode(request)


def _with_url(image: msgspec.Raw, url: str) -> msgspec.Raw:
    if not begins(image, b"{"):
        return as_raw(url)
    fields = msgspec.json.decode(image, type=RawFields)
    fields["url"] = as_raw(url)
    return as_raw(fields)
