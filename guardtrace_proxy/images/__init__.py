"""A request's images: fetched and decoded once, under limits, by one rule, so that auditor and model see the same
bytes."""

from __future__ import annotations

from guardtrace_proxy.images.allowed import AllowList, UrlPattern
from guardtrace_proxy.images.data_urls import RequestImage, decode_data_url, decode_data_urls
from guardtrace_proxy.images.decode import Budget, ImageError, ImageLimits, decode_image
from guardtrace_proxy.images.fetch import FetchError, ImageFetcher, is_remote
from guardtrace_proxy.images.held import HeldImages
from guardtrace_proxy.images.resolve import resolve_images

__all__ = [
    "AllowList",
    "Budget",
    "FetchError",
    "HeldImages",
    "ImageError",
    "ImageFetcher",
    "ImageLimits",
    "RequestImage",
    "UrlPattern",
    "decode_data_url",
    "decode_data_urls",
    "decode_image",
    "is_remote",
    "resolve_images",
]
