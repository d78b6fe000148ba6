"""Which images a corpus takes in."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from guardtrace_proxy.images import ImageError
from guardtrace_trainer.corpus.pictures import decode_picture, read_picture
from guardtrace_trainer.steps import StepError


def png(width, height):
    data = io.BytesIO()
    Image.new("RGB", (width, height)).save(data, "PNG")
    return data.getvalue()


@pytest.mark.parametrize("size", [(4000, 20), (20, 4000)])
def test_two_hundred_times_as_long_as_wide_is_taken(size):
    assert decode_picture(png(*size), "image/png").size == size


@pytest.mark.parametrize("size", [(4020, 20), (20, 4020), (100_000, 40)])
def test_what_is_longer_is_refused(size):
    with pytest.raises(ImageError, match="it is more than 200 times as long as wide"):
        decode_picture(png(*size), "image/png")


def test_what_is_made_smaller_is_no_longer_than_that():
    width, height = decode_picture(png(16_000, 90), "image/png").size
    assert width < 16_000
    assert width <= 200 * height


def test_its_file_is_named(tmp_path):
    (tmp_path / "long.png").write_bytes(png(4020, 20))
    with pytest.raises(StepError, match=r"long\.png: .*it is more than 200 times.*replace it or take it away"):
        read_picture(tmp_path / "long.png")
