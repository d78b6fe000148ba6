"""Bytes to pixels under limits. The one decode rule of this proxy:

PNG, JPEG, WebP and GIF, of the media type that was declared; one frame; EXIF orientation applied; alpha over
white, and beside it all that transparency hides, since a model's own decoder may leave transparency out; 16-bit greys
scaled to 8; RGB. A JPEG's extra pictures (MPO) are ignored, as every JPEG decoder does. A PNG with
a transparent colour of 16 bits a channel is refused: Pillow keeps 8, so that colour can't be told from its neighbours.
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
"""In a decoded image's ``info``: whether another decoder may show its data otherwise, as Pillow's own conversion shows
16-bit greys as white, and what is transparent as if it weren't."""
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
    """Width times height."""


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

    def spend(self, data: bytes, image: Image.Image) -> None:
        """Take off what an image took that was decoded."""
        self.spend_bytes(len(data))
        self._pixels -= image.width * image.height


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
            budget.check_pixels(image.size, field)
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
    budget.spend(data, pixels)
    return pixels


def _as_rgb(image: ImageFile, field: str) -> Image.Image:
    has_deep_colours = any(rawmode == "RGB;16B" for _, _, _, rawmode in image.tile)  # loading takes the tiles away
    image.load()
    if has_deep_colours and "transparency" in image.info:
        raise ImageError(field, "the image has a transparent colour of 16 bits a channel: save it with 8 bits")
    upright = ImageOps.exif_transpose(image)
    is_deep_grey = upright.mode == "I" or upright.mode.startswith("I;16")
    if is_deep_grey:
        shown, bare = _scaled(upright, upright.info.get("transparency")), _scaled(upright)
    elif upright.has_transparency_data:
        rgba = upright.convert("RGBA")
        shown, bare = _over_white(rgba), rgba.convert("RGB")
    else:
        shown = bare = upright.convert("RGB")
    hides = shown is not bare and ImageChops.difference(shown, bare).getbbox() is not None
    pixels = _side_by_side(shown, bare) if hides else shown
    pixels.info[AMBIGUOUS] = is_deep_grey or hides
    return pixels


def _scaled(deep: Image.Image, clear: int | None = None) -> Image.Image:
    """16-bit greys in 8 bits, ``clear`` as white."""
    greys = list(_GREYS)
    if clear is not None:
        greys[clear] = 255
    return deep.convert("I").point(greys, "L").convert("RGB")


def _over_white(rgba: Image.Image) -> Image.Image:
    white = Image.new("RGB", rgba.size, "white")
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white


def _side_by_side(one: Image.Image, other: Image.Image) -> Image.Image:
    """Along the shorter side, so that the whole isn't more stretched than each."""
    width, height = one.size
    place = (0, height) if width >= height else (width, 0)
    both = Image.new("RGB", (width + place[0], height + place[1]))
    both.paste(one, (0, 0))
    both.paste(other, place)
    return both


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
