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


@pytest.mark.parametrize("size", [(4020, 20), (20, 4020), (16000, 90)])
def test_what_is_longer_once_it_is_fitted_is_refused(size):
    with pytest.raises(ImageError, match="as an auditor sees it the image is more than 200 times as long as wide"):
        decode_picture(png(*size), "image/png")


def test_its_file_is_named(tmp_path):
    (tmp_path / "long.png").write_bytes(png(4020, 20))
    with pytest.raises(
        StepError,
        match=r"long\.png: as an auditor sees it the image is more than 200 times.*replace it or take it away",
    ):
        read_picture(tmp_path / "long.png")
