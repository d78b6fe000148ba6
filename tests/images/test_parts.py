from __future__ import annotations

import io
import struct
import time
import zlib

import pytest
from PIL import Image

from guardtrace_proxy.images import Budget, ImageError, ImageLimits, decode_image
from guardtrace_proxy.images.parts import MAX_COSTLY, MAX_SCANS, MAX_SEGMENTS

NOISE = Image.effect_noise((160, 120), 60)
SCAN, END = b"\xff\xda", b"\xff\xd9"


def jpeg(image: Image.Image = NOISE, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def with_scans(data: bytes, count: int, before_each: bytes = b"") -> bytes:
    """A JPEG whose last scan is repeated until it has so many."""
    last = data[data.rindex(SCAN) : -2]
    return data[:-2] + (before_each + last) * (count - data.count(SCAN)) + END


def segment(marker: int, payload: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(payload) + 2) + payload


def behind_its_start(data: bytes, added: bytes) -> bytes:
    return data[:2] + added + data[2:]


def decode(data: bytes, media_type: str = "image/jpeg") -> Image.Image:
    return decode_image(data, media_type, Budget(ImageLimits()), "there")


def is_refused(data: bytes, media_type: str = "image/jpeg") -> bool:
    """Whether it is refused for its parts."""
    try:
        decode(data, media_type)
    except ImageError as error:
        assert error.field == "there"
        return "too many" in str(error)
    return False


PROGRESSIVE = jpeg(progressive=True)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("progressive", [True, False])
def test_what_encoders_write_is_taken(mode: str, progressive: bool) -> None:
    exif = Image.Exif()
    exif[0x010E] = "a" * 60_000
    data = jpeg(NOISE.convert(mode), progressive=progressive, icc_profile=bytes(1_000_000), exif=exif)
    assert decode(data).size == NOISE.size


def test_a_progressive_jpeg_has_so_many_scans_at_most() -> None:
    assert decode(with_scans(PROGRESSIVE, MAX_SCANS)).size == NOISE.size
    assert is_refused(with_scans(PROGRESSIVE, MAX_SCANS + 1))


@pytest.mark.parametrize(
    "before", [b"\xff\xff\xff", b"\xff\xd3", b"\xff\x00", b"x", b"\xff\xfe\0\0", b"\xff\xfe\0\2", segment(0xE1, END)]
)
def test_whatever_stands_before_it_a_scan_is_counted(before: bytes) -> None:
    assert is_refused(with_scans(PROGRESSIVE, MAX_SCANS + 1, before))


def test_scans_of_a_jpeg_that_isnt_progressive_are_counted_too() -> None:
    assert is_refused(with_scans(jpeg(), MAX_SCANS + 1))


@pytest.mark.parametrize("marker", [0xE0, 0xE1, 0xE2, 0xEF, 0xFE])
def test_what_looks_like_scans_in_a_payload_is_none(marker: int) -> None:
    thumbnail = segment(marker, b"thumbnail" + PROGRESSIVE[:600] + SCAN * 30_000)
    assert decode(behind_its_start(PROGRESSIVE, thumbnail)).size == NOISE.size


def test_what_stands_behind_the_picture_isnt_counted() -> None:
    """Further pictures, gain maps and films, as phones append them."""
    assert decode(PROGRESSIVE + PROGRESSIVE * 12 + SCAN * 1_000_000).size == NOISE.size
    file = io.BytesIO()
    NOISE.save(file, "MPO", save_all=True, append_images=[NOISE] * 3)
    assert decode(file.getvalue()).size == NOISE.size


def test_a_jpeg_has_so_many_segments_at_most() -> None:
    own = 20
    assert decode(behind_its_start(PROGRESSIVE, segment(0xFE, b"x") * (MAX_SEGMENTS - 2 * own))).size == NOISE.size
    assert is_refused(behind_its_start(PROGRESSIVE, segment(0xFE, b"x") * MAX_SEGMENTS))


def test_a_jpeg_has_so_much_exif_at_most_wherever_it_stands() -> None:
    exif = segment(0xE1, b"Exif\0\0ab")
    assert decode(behind_its_start(PROGRESSIVE, exif * MAX_COSTLY)).size == NOISE.size
    assert is_refused(behind_its_start(PROGRESSIVE, exif * (MAX_COSTLY + 1)))
    assert is_refused(behind_its_start(PROGRESSIVE, END + exif * (MAX_COSTLY + 1)))


@pytest.mark.parametrize("kind", [b"iCCP", b"zTXt"])
@pytest.mark.parametrize("behind", [True, False])
def test_a_png_has_so_much_to_inflate_at_most(kind: bytes, behind: bool) -> None:
    file = io.BytesIO()
    NOISE.save(file, "PNG")
    at = -12 if behind else 33

    def with_chunks(count: int) -> bytes:
        body = kind + b"x\0\0" + zlib.compress(b"y")
        chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
        return file.getvalue()[:at] + chunk * count + file.getvalue()[at:]

    assert decode(with_chunks(MAX_COSTLY), "image/png").size == NOISE.size
    assert is_refused(with_chunks(MAX_COSTLY + 1), "image/png")


@pytest.mark.parametrize("unit", [b"\xff", b"\xff\xd0", b"\xff\x00", b"\xff\xfe\0\2", b"\xff\xfe\xff\xff", b"x"])
def test_a_hostile_file_is_soon_refused(unit: bytes) -> None:
    data = PROGRESSIVE[:2] + unit * (4_000_000 // len(unit))
    began = time.process_time()
    with pytest.raises(ImageError):
        decode(data)
    assert time.process_time() - began < 5
