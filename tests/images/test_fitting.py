"""Large images are made smaller for a remote auditor; small ones go as they came."""

from __future__ import annotations

import io
from base64 import b64decode, b64encode

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from guardtrace_proxy.images.data_urls import RequestImage, decode_data_url
from guardtrace_proxy.images.decode import AMBIGUOUS, ImageLimits
from guardtrace_proxy.images.fitting import (
    CELL,
    MAX_STRETCH,
    MAX_TOKENS,
    fitted,
    image_tokens,
    is_too_stretched,
    smaller,
)


def request_image(width: int, height: int) -> RequestImage:
    pixels = Image.new("RGB", (width, height), (9, 99, 199))
    data = io.BytesIO()
    pixels.save(data, "PNG")
    return RequestImage(f"data:image/png;base64,{b64encode(data.getvalue()).decode()}", "image/png", pixels)


def test_a_small_image_goes_as_it_came():
    image = request_image(640, 480)
    assert fitted(image.data_url, image.pixels) == (image.data_url, 23 * 18 + 2)


@pytest.mark.parametrize("clear", [None, 5])
def test_sixteen_bit_greys_go_as_a_copy_that_every_decoder_shows(clear: int | None):
    grey = Image.new("I;16", (64, 64), 65535)
    grey.paste(0x2020, (0, 0, 32, 64))
    data = io.BytesIO()
    grey.save(data, "PNG", **({} if clear is None else {"transparency": clear}))
    image = decode_data_url(f"data:image/png;base64,{b64encode(data.getvalue()).decode()}", ImageLimits(), "")
    url, tokens = fitted(image.data_url, image.pixels)
    sent = Image.open(io.BytesIO(b64decode(url.partition(",")[2])))
    assert (sent.mode, sent.size, tokens) == ("RGB", (64, 128), image_tokens(64, 128))
    assert [abs(sent.getpixel((x, 32))[0] - grey) < 4 for x, grey in ((8, 32), (56, 255))] == [True, True]
    assert sent.getpixel((8, 96))[0] > 250  # where a decoder cuts off


def test_an_image_that_hides_something_goes_as_a_copy_of_both_its_looks():
    data = io.BytesIO()
    Image.new("RGBA", (64, 32), (0, 0, 0, 0)).save(data, "PNG")
    image = decode_data_url(f"data:image/png;base64,{b64encode(data.getvalue()).decode()}", ImageLimits(), "")
    url, tokens = fitted(image.data_url, image.pixels)
    sent = Image.open(io.BytesIO(b64decode(url.partition(",")[2])))
    assert (sent.mode, sent.size, tokens) == ("RGB", (64, 64), image_tokens(64, 64))
    assert [sent.getpixel((32, y))[0] // 128 for y in (8, 56)] == [1, 0]


def test_no_text_chunk_of_an_image_makes_a_copy_of_it():
    data, chunks = io.BytesIO(), PngInfo()
    chunks.add_text(AMBIGUOUS, "yes")
    Image.new("RGB", (64, 64)).save(data, "PNG", pnginfo=chunks)
    image = decode_data_url(f"data:image/png;base64,{b64encode(data.getvalue()).decode()}", ImageLimits(), "")
    assert fitted(image.data_url, image.pixels)[0] == image.data_url


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 5000), st.integers(1, 5000))
def test_no_image_takes_more_than_its_share_and_its_shape_stays(width, height):
    image = request_image(width, height)
    url, tokens = fitted(image.data_url, image.pixels)
    sent = Image.open(io.BytesIO(b64decode(url.partition(",")[2])))
    assert tokens == image_tokens(*sent.size) <= MAX_TOKENS + 2
    if url != image.data_url:
        assert 0.9 < (sent.width / sent.height) / (width / height) < 1.12 or min(sent.size) <= 140
        assert abs(sent.getpixel((0, 0))[2] - 199) < 4


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 300), st.integers(1, MAX_STRETCH), st.booleans())
@example(100, MAX_STRETCH - 1, False)
@example(100, MAX_STRETCH - 1, True)
def test_a_copy_is_never_too_stretched_where_the_image_wasnt(width, times, upright):
    size = (width, width * times) if upright else (width * times, width)
    assert not is_too_stretched(*size)
    copy = smaller(Image.new("L", size))
    assert not is_too_stretched(*copy.size)
    assert copy.size == size or all(side % CELL == 0 for side in copy.size)


def test_what_is_too_stretched():
    assert is_too_stretched(201, 1)
    assert is_too_stretched(28, 28 * 200 + 1)
    assert not is_too_stretched(200, 1)
