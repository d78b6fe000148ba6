"""A request's images while its reply runs: the pixels, which take the most, only as long as somebody needs them."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

from PIL import Image

from guardtrace_proxy.images.data_urls import RequestImage, decode_data_urls
from guardtrace_proxy.images.decode import ImageLimits

BYTES_A_PIXEL = 4
"""What Pillow takes for RGB."""


class HeldImages:
    """Images that were decoded, until they are let go. Their data URLs stay, so that whoever comes late gets them
    decoded again."""

    def __init__(
        self, images: Sequence[RequestImage], fields: Sequence[str], limits: ImageLimits, *, fetched_bytes: int = 0
    ) -> None:
        """``fields``: where each stands in the request. ``limits`` are those that they kept to. ``fetched_bytes``: of
        data URLs that aren't in the request's body."""
        self._images: Sequence[RequestImage] | None = images
        self._urls = [(image.data_url, field) for image, field in zip(images, fields, strict=True)]
        self._limits = limits
        self._fetched_bytes = fetched_bytes
        self._pixels: list[tuple[weakref.ref[Image.Image], int]] = []
        self._watch(images)

    def __len__(self) -> int:
        return len(self._urls)

    @property
    def data_urls(self) -> list[str]:
        """As the model gets them."""
        return [url for url, _ in self._urls]

    @property
    def held_bytes(self) -> int:
        """What they take now beside the request's body: pixels, whoever holds them, and what was fetched."""
        return self._fetched_bytes + sum(size for pixels, size in self._pixels if pixels() is not None)

    async def decoded(self) -> Sequence[RequestImage]:
        """The images; decoded again, in a worker thread, where they were let go."""
        if self._images is not None:
            return self._images
        images = await decode_data_urls(self._urls, self._limits)
        self._watch(images)
        return images

    def let_go(self) -> None:
        """Nobody is expected to ask any more."""
        self._images = None

    def _watch(self, images: Sequence[RequestImage]) -> None:
        self._pixels = [known for known in self._pixels if known[0]() is not None]
        for image in images:
            size = BYTES_A_PIXEL * image.pixels.width * image.pixels.height
            self._pixels.append((weakref.ref(image.pixels), size))
