"""Large images are made smaller before a remote auditor gets them, so that a photograph fits its context; those that
decoders differ about go as a copy of what this proxy sees."""

from __future__ import annotations

import io
from base64 import b64encode

from PIL import Image

from guardtrace_proxy.images.decode import AMBIGUOUS

CELL = 28
"""Pixels on a side of what Qwen2.5-VL makes one token of: patches of 14, merged two by two."""
MAX_TOKENS = 1280
"""A server left at Qwen2.5-VL's own ``max_pixels`` would make up to 16,384 tokens of one photograph."""
MAX_PIXELS = MAX_TOKENS * CELL * CELL
MAX_STRETCH = 200
"""Qwen2.5-VL takes no image that is more times as long as wide."""


def is_too_stretched(width: int, height: int) -> bool:
    """Whether no auditor takes an image of this shape."""
    return max(width, height) > MAX_STRETCH * min(width, height)


def image_tokens(width: int, height: int) -> int:
    """At most so many tokens, with the marks before and behind."""
    return max(4, -(-width // CELL) * -(-height // CELL)) + 2


def smaller(pixels: Image.Image) -> Image.Image:
    """The image itself, or a copy that takes ``MAX_TOKENS`` at most. Takes CPU time for large ones."""
    width, height = pixels.size
    if image_tokens(width, height) <= MAX_TOKENS + 2:
        return pixels
    scale = (MAX_PIXELS / (width * height)) ** 0.5
    sides = [max(CELL, int(side * scale) // CELL * CELL) for side in (width, height)]
    longest = MAX_STRETCH * min(sides)  # whole cells may have made it more stretched than it was
    return pixels.resize((min(sides[0], longest), min(sides[1], longest)), Image.Resampling.BICUBIC)


def fitted(data_url: str, pixels: Image.Image) -> tuple[str, int]:
    """The image's own URL, or that of a copy, and how many tokens it takes. Takes CPU time for large ones."""
    copy = smaller(pixels)
    if copy is pixels and not pixels.info.get(AMBIGUOUS):
        return data_url, image_tokens(*pixels.size)
    data = io.BytesIO()
    copy.save(data, "JPEG", quality=95, subsampling=0)
    return f"data:image/jpeg;base64,{b64encode(data.getvalue()).decode()}", image_tokens(*copy.size)
