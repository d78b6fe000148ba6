"""Bytes to pixels under limits. The one decode rule of this proxy:

PNG, JPEG, WebP and GIF, of the media type that was declared; one frame; EXIF orientation applied; alpha over white;
16-bit greys scaled to 8; RGB. Where a model's own decoder may show something else, that stands beside it: what
transparency hides, and 16-bit greys cut off at 255. A JPEG's extra pictures (MPO) are ignored, as every JPEG decoder
does. A PNG with a transparent colour of 16 bits a channel is refused: Pillow keeps 8, so that colour can't be told from
its neighbours.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from guardtrace_proxy.images.parts import has_too_many_parts

FORMATS = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP", "image/gif": "GIF"}
"""Media types that are taken, with Pillow's names."""
_ALIASES = {"image/jpg": "image/jpeg"}
AMBIGUOUS = "ambiguous"
"""In a decoded image's ``info``: whether another decoder may show its data otherwise, as Pillow's own conversion cuts
16-bit greys off at 255, and shows what is transparent as if it weren't."""
_GREYS = [value // 257 for value in range(65536)]
"""16-bit greys in 8 bits."""


def media_type_of(declared: str) -> str | None:
    """The media type of :data:`FORMATS` that is meant; None where there is none."""
    media_type = _ALIASES.get(declared.lower(), declared.lower())
    return media_type if media_type in FORMATS else None


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What the images of one request may take together."""

    max_count: int = 8
    max_bytes: int = 20 * 1024 * 1024
    """Encoded bytes, after base64."""
    max_pixels: int = 40_000_000
    """Width times height, as the headers say; decoded, an image may be up to three views of it."""


class ImageError(Exception):
    """An image of the request can't be taken: a 400. ``field`` leads to it; neither quotes the image."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class Budget:
    """What is left of a request's limits while its images are decoded one after another."""

    def __init__(self, limits: ImageLimits) -> None:
        self.limits = limits
        self._bytes = limits.max_bytes
        self._pixels = limits.max_pixels

    def check_bytes(self, count: int, field: str) -> None:
        if count > self._bytes:
            raise ImageError(field, f"the images are over {self.limits.max_bytes} bytes: send smaller ones")

    def check_pixels(self, size: tuple[int, int], field: str) -> None:
        if size[0] * size[1] > self._pixels:
            raise ImageError(field, f"the images are over {self.limits.max_pixels} pixels: send smaller ones")

    def spend_bytes(self, count: int) -> None:
        """Take off what was read."""
        self._bytes -= count

    def spend(self, data: bytes, size: tuple[int, int]) -> None:
        """Take off what an image took that was decoded; ``size`` is its header's."""
        self.spend_bytes(len(data))
        self._pixels -= size[0] * size[1]


def decode_image(data: bytes, media_type: str, budget: Budget, field: str) -> Image.Image:
    """Decode one image to RGB. Its size in the header and its parts are checked before anything is decompressed.
    ``info`` has :data:`AMBIGUOUS`.

    Raises:
        ImageError: it is over the limits, broken, animated, or something else than ``media_type``.
    """
    budget.check_bytes(len(data), field)
    if has_too_many_parts(data, media_type):
        raise ImageError(field, f"the {media_type} image has far too many scans, segments or chunks: save it anew")
    if budget.limits.max_pixels > (Image.MAX_IMAGE_PIXELS or budget.limits.max_pixels):
        Image.MAX_IMAGE_PIXELS = budget.limits.max_pixels  # only raised: our own check is the stricter one
    if media_type == "image/webp":
        budget.check_pixels(_webp_size(data), field)  # Pillow allocates WebP's canvas on opening
    try:
        with Image.open(io.BytesIO(data), formats=[FORMATS[media_type]]) as image:
            size = image.size
            budget.check_pixels(size, field)
            if image.format != "MPO" and getattr(image, "is_animated", False):
                raise ImageError(field, "the image has several frames: send a single one")
            pixels = _as_rgb(image, field)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(field, "the image has far too many pixels: send a smaller one") from error
    except UnidentifiedImageError as error:
        raise ImageError(field, f"the data isn't a readable {media_type} image") from error
    except Exception as error:  # broken files make Pillow raise nearly anything
        kind = type(error).__name__
        raise ImageError(field, f"the {media_type} image is broken or cut short ({kind})") from error
    budget.spend(data, size)
    return pixels


def _as_rgb(image: ImageFile, field: str) -> Image.Image:
    has_deep_colours = any(rawmode == "RGB;16B" for _, _, _, rawmode in image.tile)  # loading takes the tiles away
    image.load()
    if has_deep_colours and "transparency" in image.info:
        raise ImageError(field, "the image has a transparent colour of 16 bits a channel: save it with 8 bits")
    upright = ImageOps.exif_transpose(image)
    is_deep_grey = upright.mode == "I" or upright.mode.startswith("I;16")
    views = _distinct(_grey_views(upright) if is_deep_grey else _views(upright))
    pixels = _side_by_side(views)
    pixels.info[AMBIGUOUS] = is_deep_grey or len(views) > 1
    return pixels


def _views(upright: Image.Image) -> list[Image.Image]:
    """What decoders make of it, our own rule's first."""
    if not upright.has_transparency_data:
        return [upright.convert("RGB")]
    rgba = upright.convert("RGBA")
    return [_over_white(rgba), rgba.convert("RGB")]


def _grey_views(deep: Image.Image) -> list[Image.Image]:
    """The same of 16-bit greys, which Pillow's conversion cuts off at 255 rather than scaling them."""
    greys, clear = deep.convert("I"), deep.info.get("transparency")
    views = [greys.point(_GREYS, "L"), greys.point([min(grey, 255) for grey in range(65536)], "L")]
    if clear is not None:
        views.insert(0, greys.point([*_GREYS[:clear], 255, *_GREYS[clear + 1 :]], "L"))
    return [view.convert("RGB") for view in views]


def _distinct(views: list[Image.Image]) -> list[Image.Image]:
    found: list[Image.Image] = []
    for view in views:
        if all(ImageChops.difference(view, other).getbbox() for other in found):
            found.append(view)
    return found


def _over_white(rgba: Image.Image) -> Image.Image:
    white = Image.new("RGB", rgba.size, "white")
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white


def _side_by_side(views: list[Image.Image]) -> Image.Image:
    """Along the shorter side, so that the whole isn't more stretched than each."""
    if len(views) == 1:
        return views[0]
    width, height = views[0].size
    across, down = (0, height) if width >= height else (width, 0)
    more = len(views) - 1
    whole = Image.new("RGB", (width + more * across, height + more * down))
    for place, view in enumerate(views):
        whole.paste(view, (place * across, place * down))
    return whole


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height in a WebP header (RFC 9649); (0, 0) where it is none, which Pillow then says."""
    kind, payload = data[12:16], data[20:30]
    if len(payload) < 10:
        return 0, 0
    if kind == b"VP8X":
        return 1 + int.from_bytes(payload[4:7], "little"), 1 + int.from_bytes(payload[7:10], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(payload[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        width, height = payload[6:8], payload[8:10]
        return int.from_bytes(width, "little") & 0x3FFF, int.from_bytes(height, "little") & 0x3FFF
    return 0, 0
