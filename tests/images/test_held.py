"""Decoded images stay as long as somebody needs them, and are counted as long as they stay."""

from __future__ import annotations

import base64
import gc

import anyio

from guardtrace_proxy.images import HeldImages, ImageLimits, decode_data_url
from guardtrace_proxy.images.held import BYTES_A_PIXEL
from tests.images.serving import picture

LIMITS = ImageLimits()
FIELD = "messages[0].content[0].image_url.url"


def held(*sizes: tuple[int, int], fetched_bytes: int = 0) -> HeldImages:
    urls = [f"data:image/png;base64,{base64.b64encode(picture(size=size)).decode()}" for size in sizes]
    images = [decode_data_url(url, LIMITS, FIELD) for url in urls]
    return HeldImages(images, [FIELD] * len(images), LIMITS, fetched_bytes=fetched_bytes)


def test_pixels_go_when_they_are_let_go_and_what_was_fetched_stays() -> None:
    images = held((10, 20), (30, 40), fetched_bytes=7)
    assert (len(images), images.held_bytes) == (2, 7 + BYTES_A_PIXEL * (10 * 20 + 30 * 40))
    images.let_go()
    gc.collect()
    assert (len(images), images.held_bytes) == (2, 7)


def test_pixels_that_somebody_holds_count() -> None:
    images = held((10, 20))
    (mine,) = anyio.run(images.decoded)
    images.let_go()
    assert images.held_bytes == BYTES_A_PIXEL * 200
    del mine
    assert images.held_bytes == 0


def test_who_comes_late_gets_them_decoded_again() -> None:
    async def run() -> None:
        images = held((10, 20))
        (before,) = await images.decoded()
        images.let_go()
        (after,) = await images.decoded()
        assert (after.data_url, after.pixels.tobytes()) == (before.data_url, before.pixels.tobytes())
        assert after.pixels is not before.pixels
        assert images.held_bytes == 2 * BYTES_A_PIXEL * 200
        del before, after
        await anyio.sleep(0.05)  # the event loop lets go of a worker thread's result in its next round
        assert images.held_bytes == 0

    anyio.run(run)
