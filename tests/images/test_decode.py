from __future__ import annotations

import io
import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from guardtrace_proxy.images import Budget, ImageError, ImageLimits, decode_image

FIELD = "messages[2].content[0].image_url.url"
LIMITS = ImageLimits(max_bytes=200_000, max_pixels=10_000)


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(chunks: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + chunks + chunk(b"IEND", b"")


def decode(data: bytes, media_type: str = "image/png", limits: ImageLimits = LIMITS) -> Image.Image:
    return decode_image(data, media_type, Budget(limits), FIELD)


def refusal(data: bytes, media_type: str = "image/png", limits: ImageLimits = LIMITS) -> str:
    with pytest.raises(ImageError) as caught:
        decode(data, media_type, limits)
    assert caught.value.field == FIELD
    return str(caught.value)


RED = Image.new("RGB", (40, 20), (255, 0, 0))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF"])
def test_each_format_becomes_rgb(format: str) -> None:
    image = decode(encoded(RED, format), f"image/{format.lower()}")
    assert (image.mode, image.size) == ("RGB", (40, 20))
    red, green, blue = image.getpixel((5, 5))
    assert red > 240
    assert max(green, blue) < 16


@pytest.mark.parametrize(("format", "mark"), [("PNG", 20), ("GIF", 1)])
def test_an_image_is_broken_where_pixels_are_missing_not_the_mark_behind_them(format: str, mark: int) -> None:
    media_type = f"image/{format.lower()}"
    image = encoded(Image.linear_gradient("L").resize((40, 20)), format)
    assert decode(image[:-mark], media_type).tobytes() == decode(image, media_type).tobytes()
    assert "is broken or cut short" in refusal(image[: len(image) - mark - 20], media_type)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_mode_of_png_becomes_rgb(mode: str) -> None:
    assert decode(encoded(Image.new(mode, (3, 3)), "PNG")).mode == "RGB"


def test_cmyk_jpeg_becomes_rgb() -> None:
    image = decode(encoded(RED.convert("CMYK"), "JPEG"), "image/jpeg")
    assert image.mode == "RGB"
    assert image.getpixel((5, 5))[0] > 200


@pytest.mark.parametrize(("grey", "expected"), [(0, 0), (257 * 100, 100), (65535, 255)])
def test_sixteen_bits_are_scaled_not_clipped(grey: int, expected: int) -> None:
    image = Image.frombytes("I;16", (1, 1), grey.to_bytes(2, "little"))
    assert decode(encoded(image, "PNG")).getpixel((0, 0)) == (expected,) * 3


def test_dark_sixteen_bits_are_shown_as_decoders_that_clip_show_them_too() -> None:
    greys = (0, 255, 200)
    deep = encoded(Image.frombytes("I;16", (3, 1), struct.pack("<3H", *greys)), "PNG")
    shown = decode(deep)
    assert shown.size == (3, 2)
    assert [shown.getpixel((x, 1)) for x in range(3)] == [(grey,) * 3 for grey in greys]
    with Image.open(io.BytesIO(deep)) as image:
        assert list(image.convert("RGB").crop((0, 0, 3, 1)).tobytes()[::3]) == list(greys)  # as a model's decoder does


def sixteen_bits(
    colour_type: int, first: tuple[int, ...], second: tuple[int, ...], clear: tuple[int, ...] = ()
) -> bytes:
    """A PNG of two pixels; ``clear`` is the colour that its tRNS chunk makes transparent."""

    def words(*values: int) -> bytes:
        return struct.pack(f">{len(values)}H", *values)

    header = struct.pack(">IIBBBBB", 2, 1, 16, colour_type, 0, 0, 0)
    transparency = chunk(b"tRNS", words(*clear)) if clear else b""
    return png(chunk(b"IHDR", header) + transparency + chunk(b"IDAT", zlib.compress(b"\0" + words(*first, *second))))


DARK, WHITE = 0x2020, 0xFFFF


@pytest.mark.parametrize(
    ("colour_type", "first", "second", "clear", "expected"),
    [
        (0, (DARK,), (WHITE,), (), (32, 255)),
        (0, (DARK,), (WHITE,), (5,), (32, 255)),
        (0, (DARK,), (WHITE,), (DARK - 1,), (32, 255)),
        (0, (DARK,), (WHITE,), (WHITE,), (32, 255)),
        (0, (DARK,), (0x4040,), (DARK,), (255, 64)),
        (2, (DARK,) * 3, (WHITE,) * 3, (), (32, 255)),
        (4, (DARK, WHITE), (0x4040, WHITE), (), (32, 64)),
        (4, (DARK, WHITE), (0x4040, 0), (), (32, 255)),
        (4, (DARK, WHITE), (0x4040, WHITE), (DARK,), (32, 64)),
        (6, (DARK, DARK, DARK, WHITE), (0, 0, 0, 0), (), (32, 255)),
    ],
)
def test_sixteen_bits_of_every_kind_are_what_they_show(
    colour_type: int, first: tuple[int, ...], second: tuple[int, ...], clear: tuple[int, ...], expected: tuple[int, int]
) -> None:
    shown = decode(sixteen_bits(colour_type, first, second, clear))
    assert [shown.getpixel((x, 0)) for x in (0, 1)] == [(grey,) * 3 for grey in expected]


@pytest.mark.parametrize("clear", [(DARK,) * 3, (0x1220,) * 3, (0x20,) * 3, (5, 6, 7)])
def test_a_transparent_colour_of_sixteen_bits_is_refused_as_it_cant_be_told_from_its_neighbours(
    clear: tuple[int, ...],
) -> None:
    assert "8 bits" in refusal(sixteen_bits(2, (DARK,) * 3, (WHITE,) * 3, clear))


def test_a_transparent_grey_of_sixteen_bits_stays_so_when_the_image_is_turned() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.frombytes("I;16", (2, 1), struct.pack("<2H", DARK, 0x4040))
    shown = decode(encoded(image, "PNG", transparency=DARK, exif=exif.tobytes()))
    assert [shown.getpixel((0, y)) for y in (0, 1)] == [(255,) * 3, (64,) * 3]


@pytest.mark.parametrize(("alpha", "expected"), [(0, (255, 255, 255)), (255, (0, 0, 255)), (128, (127, 127, 255))])
def test_alpha_lies_over_white(alpha: int, expected: tuple[int, int, int]) -> None:
    assert decode(encoded(Image.new("RGBA", (2, 2), (0, 0, 255, alpha)), "PNG")).getpixel((0, 0)) == expected


def test_transparent_palette_colour_is_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 200, 0, 0])
    image.putpixel((1, 0), 1)
    shown = decode(encoded(image, "PNG", transparency=0))
    assert [shown.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (200, 0, 0)]


def hiding(mode: str, size: tuple[int, int] = (4, 2)) -> bytes:
    """White on which all is transparent, with a black corner, as an image of this mode."""
    page = Image.new("L", size, 255)
    page.paste(0, (0, 0, 1, 1))
    if mode.endswith("A"):
        page = page.convert(mode)
        page.putalpha(0)
        return encoded(page, "PNG")
    if mode == "I;16":
        deep = Image.frombytes(mode, size, b"".join(struct.pack("<H", grey * 257) for grey in page.tobytes()))
        return encoded(deep, "PNG", transparency=0)
    return encoded(page.convert(mode), "PNG", transparency=(0, 0, 0) if mode == "RGB" else 0)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_what_is_transparent_is_shown_too_since_a_models_decoder_may_show_it(mode: str) -> None:
    shown = decode(hiding(mode))
    assert (shown.mode, shown.size) == ("RGB", (4, 4))
    assert [shown.getpixel((0, y)) for y in (0, 2)] == [(255,) * 3, (0,) * 3]
    assert decode(hiding(mode, (2, 4))).size == (4, 4)


def test_transparency_that_hides_nothing_changes_nothing() -> None:
    page = Image.new("RGBA", (4, 2), (9, 9, 9, 255))
    page.paste((255, 255, 255, 0), (0, 0, 1, 1))
    shown = decode(encoded(page, "PNG"))
    assert (shown.size, shown.getpixel((0, 0)), shown.getpixel((3, 1))) == ((4, 2), (255,) * 3, (9,) * 3)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_exif_orientation_is_applied(format: str) -> None:
    image = Image.new("RGB", (40, 20), "white")
    image.paste((255, 0, 0), (0, 0, 20, 20))  # red on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise by 90 degrees to view
    shown = decode(encoded(image, format, exif=exif.tobytes()), f"image/{format.lower()}")
    assert shown.size == (20, 40)
    assert shown.getpixel((10, 5))[1] < 40  # red on top
    assert shown.getpixel((10, 35))[1] > 200


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_several_frames_are_refused(format: str) -> None:
    frames = encoded(RED, format, save_all=True, append_images=[Image.new("RGB", (40, 20), "blue")])
    assert "several frames" in refusal(frames, f"image/{format.lower()}")


def test_a_jpeg_with_further_pictures_is_its_first() -> None:
    mpo = encoded(RED, "MPO", save_all=True, append_images=[Image.new("RGB", (40, 20), "blue")])
    assert decode(mpo, "image/jpeg").getpixel((5, 5))[0] > 240


@pytest.mark.parametrize("declared", ["image/png", "image/jpeg", "image/webp", "image/gif"])
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_content_must_match_the_declared_type(format: str, declared: str) -> None:
    if declared == f"image/{format.lower()}":
        return
    assert "readable" in refusal(encoded(RED, format), declared)


def test_bytes_are_limited() -> None:
    data = encoded(RED, "PNG")
    assert decode(data, limits=ImageLimits(max_bytes=len(data)))
    assert "bytes" in refusal(data, limits=ImageLimits(max_bytes=len(data) - 1))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF"])
def test_pixels_are_limited(format: str) -> None:
    data, media_type = encoded(RED, format), f"image/{format.lower()}"
    assert decode(data, media_type, ImageLimits(max_pixels=800))
    assert "pixels" in refusal(data, media_type, ImageLimits(max_pixels=799))


@pytest.mark.parametrize("lossless", [True, False])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_each_kind_of_webp_header_is_read(lossless: bool, mode: str) -> None:
    data = encoded(Image.new(mode, (101, 100)), "WEBP", lossless=lossless, exact=True)
    assert "pixels" in refusal(data, "image/webp")


def bomb(width: int, height: int) -> bytes:
    """A PNG that claims to be huge."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return png(chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)))


@pytest.mark.parametrize("size", [(101, 100), (20_000, 20_000), (2**31 - 1, 2**31 - 1)])
def test_bombs_are_refused_in_the_header(size: tuple[int, int]) -> None:
    assert "pixels" in refusal(bomb(*size))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_truncated_files_are_refused(format: str, share: float) -> None:
    noise = Image.effect_noise((90, 90), 80).convert("RGB")
    data = encoded(noise, format)
    assert refusal(data[: int(len(data) * share)], f"image/{format.lower()}")


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "WEBP", "GIF"]), st.data())
def test_broken_files_are_refused_or_decoded_but_never_raise_anything_else(format: str, data: st.DataObject) -> None:
    whole = bytearray(encoded(RED, format))
    for _ in range(data.draw(st.integers(1, 6))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        image = decode(bytes(whole), f"image/{format.lower()}")
    except ImageError:
        return
    assert image.mode == "RGB"
    assert image.width * image.height <= LIMITS.max_pixels


@pytest.mark.parametrize("first", [0, 1])
def test_an_image_that_hides_something_takes_no_more_of_the_budget_than_its_size(first: int) -> None:
    budget = Budget(ImageLimits(max_pixels=16))
    for data in [hiding("RGBA"), encoded(Image.new("RGB", (4, 2)), "PNG")][:: 1 if first else -1]:
        decode_image(data, "image/png", budget, "")
    with pytest.raises(ImageError, match="16 pixels"):
        decode_image(encoded(Image.new("RGB", (1, 1)), "PNG"), "image/png", budget, "")


def test_a_budget_is_common_to_the_images_that_share_it() -> None:
    budget = Budget(ImageLimits(max_pixels=1000))
    data = encoded(RED, "PNG")
    decode_image(data, "image/png", budget, "first")
    with pytest.raises(ImageError, match="1000 pixels") as caught:
        decode_image(data, "image/png", budget, "second")
    assert caught.value.field == "second"
