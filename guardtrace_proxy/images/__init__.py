"""A request's images: decoded once, under limits, by one rule, so that auditor and model see the same
bytes."""

from __future__ import annotations

from guardtrace_proxy.images.data_urls import RequestImage, decode_data_url, decode_data_urls
from guardtrace_proxy.images.decode import Budget, ImageError, ImageLimits, decode_image

__all__ = [
    "Budget",
    "ImageError",
    "ImageLimits",
    "RequestImage",
    "decode_data_url",
    "decode_data_urls",
    "decode_image",
]
