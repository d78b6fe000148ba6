"""Images in data URLs, as chat completions carry them."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass

import anyio.to_thread
from PIL import Image

from guardtrace_proxy.images.decode import FORMATS, Budget, ImageError, ImageLimits, decode_image, media_type_of

_HEADER = re.compile(r"data:(?P<type>[a-z]+/[a-z0-9.+-]+);base64,", re.IGNORECASE)
_LONGEST_HEADER = 64


@dataclass(frozen=True, slots=True)
class RequestImage:
    """An image of the request: its data URL, as it came or of what was fetched, and what is in it, RGB."""

    data_url: str
    media_type: str
    pixels: Image.Image


def decode_data_url(url: str, limits: ImageLimits, field: str) -> RequestImage:
    """Decode one image. Takes CPU time: for requests use :func:`decode_data_urls`.

    Args:
        url: ``data:image/TYPE;base64,…`` with padded standard base64 and nothing else in it.
        limits: bounds that this image must keep to.
        field: where it stands in the request, as in ``messages[2].content[0].image_url.url``.

    Raises:
        ImageError: it can't be taken; the message says what was expected.
    """
    return _decode(url, Budget(limits), field)


async def decode_data_urls(images: Sequence[tuple[str, str]], limits: ImageLimits) -> list[RequestImage]:
    """Decode all images of a request, given as (url, field), in a worker thread and under common limits.

    Raises:
        ImageError: one can't be taken, or all of them together can't.
    """
    if not images:
        return []
    check_count(images, limits)
    return await anyio.to_thread.run_sync(_decode_all, images, limits, abandon_on_cancel=True)


def check_count(images: Sequence[tuple[str, str]], limits: ImageLimits) -> None:
    """Raises ImageError, at the first image over it, where there are more than ``limits.max_count``."""
    if len(images) > limits.max_count:
        _, first_over = images[limits.max_count]
        raise ImageError(first_over, f"{len(images)} images are over the limit of {limits.max_count}: send fewer")


def _decode_all(images: Sequence[tuple[str, str]], limits: ImageLimits) -> list[RequestImage]:
    budget = Budget(limits)
    return [_decode(url, budget, field) for url, field in images]


def _decode(url: str, budget: Budget, field: str) -> RequestImage:
    header = _HEADER.match(url[:_LONGEST_HEADER])
    if header is None:
        raise ImageError(field, "expected a data URL: data:image/png;base64,… (or jpeg, webp, gif)")
    media_type = media_type_of(header["type"])
    if media_type is None:
        raise ImageError(field, f"the media type must be one of {', '.join(FORMATS)}")
    budget.check_bytes((len(url) - header.end()) // 4 * 3 - 2, field)  # before decoding; two may be padding
    try:
        data = base64.b64decode(url[header.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        message = "the data URL isn't valid base64 (standard alphabet, padded, no spaces)"
        raise ImageError(field, message) from error
    return RequestImage(url, media_type, decode_image(data, media_type, budget, field))
