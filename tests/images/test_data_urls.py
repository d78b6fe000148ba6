from __future__ import annotations

import base64
import io

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from guardtrace_proxy.images import ImageError, ImageLimits, decode_data_url, decode_data_urls

FIELD = "messages[0].content[1].image_url.url"
LIMITS = ImageLimits()


def png(width: int = 4, height: int = 3) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "green").save(file, "PNG")
    return file.getvalue()


def data_url(data: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def refusal(url: str, limits: ImageLimits = LIMITS) -> str:
    with pytest.raises(ImageError) as caught:
        decode_data_url(url, limits, FIELD)
    assert caught.value.field == FIELD
    return str(caught.value)


def test_the_url_stays_as_it_came() -> None:
    url = data_url(png())
    image = decode_data_url(url, LIMITS, FIELD)
    assert image.data_url is url
    assert (image.media_type, image.pixels.size, image.pixels.mode) == ("image/png", (4, 3), "RGB")


@pytest.mark.parametrize("header", ["DATA:image/png;BASE64,", "data:IMAGE/PNG;base64,"])
def test_the_header_is_read_in_any_case(header: str) -> None:
    assert decode_data_url(header + base64.b64encode(png()).decode(), LIMITS, FIELD).media_type == "image/png"


def test_image_jpg_is_a_customary_name_of_jpeg() -> None:
    file = io.BytesIO()
    Image.new("RGB", (4, 3)).save(file, "JPEG")
    assert decode_data_url(data_url(file.getvalue(), "image/jpg"), LIMITS, FIELD).media_type == "image/jpeg"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "file:///etc/passwd",
        "data:",
        "data:image/png,AAAA",
        "data:image/png;base64",
        "data:image/png;charset=utf-8;base64,AAAA",
        "data:;base64,AAAA",
        "data:image/;base64,AAAA",
        " data:image/png;base64,AAAA",
        "https://example.org/a.png",
        "javascript:alert(1)",
        "AAAA",
    ],
)
def test_other_urls_are_told_what_is_expected(url: str) -> None:
    assert "expected a data URL" in refusal(url)


@pytest.mark.parametrize("media_type", ["image/svg+xml", "image/bmp", "image/tiff", "text/html", "application/pdf"])
def test_other_media_types_are_refused(media_type: str) -> None:
    assert "media type" in refusal(data_url(png(), media_type))


@pytest.mark.parametrize("spoil", [lambda s: s + "=", lambda s: s[:-1], lambda s: s.replace("o", "o\n"), lambda s: "é"])
def test_base64_is_strict(spoil: object) -> None:
    whole = data_url(png() + b"\0")  # so that there is padding
    header, _, body = whole.partition(",")
    assert "base64" in refusal(f"{header},{spoil(body)}")  # type: ignore[operator]


def test_bytes_are_limited_before_decoding() -> None:
    body = "A" * 4000 + "!"  # not even base64: the length is looked at first
    assert "1000 bytes" in refusal(f"data:image/png;base64,{body}", ImageLimits(max_bytes=1000))


def test_the_byte_limit_is_exact() -> None:
    data = png()
    assert decode_data_url(data_url(data), ImageLimits(max_bytes=len(data)), FIELD)
    assert "bytes" in refusal(data_url(data), ImageLimits(max_bytes=len(data) - 1))


@given(st.text(max_size=80) | st.text(max_size=80).map(lambda text: "data:image/png;base64," + text))
def test_anything_else_is_refused_without_quoting_it(url: str) -> None:
    message = refusal(url)
    assert len(url) < 30 or url not in message


def test_all_images_of_a_request_share_the_limits() -> None:
    async def decode(count: int, limits: ImageLimits) -> int:
        images = [(data_url(png()), f"images[{index}]") for index in range(count)]
        return len(await decode_data_urls(images, limits))

    def field_refused(count: int, limits: ImageLimits) -> str:
        with pytest.raises(ImageError) as caught:
            anyio.run(decode, count, limits)
        return caught.value.field

    size = len(png())
    assert anyio.run(decode, 0, LIMITS) == 0
    assert anyio.run(decode, 3, ImageLimits(max_count=3, max_bytes=3 * size, max_pixels=36)) == 3
    assert field_refused(3, ImageLimits(max_count=2)) == "images[2]"
    assert field_refused(3, ImageLimits(max_bytes=3 * size - 1)) == "images[2]"
    assert field_refused(3, ImageLimits(max_pixels=35)) == "images[2]"
