"""How many parts a file has, counted before it is decoded: of some kinds a few bytes cost a decoder a whole pass.

What bounds the rest: a PNG has seven passes at most and Pillow inflates its texts up to 64 MiB together, WebP and GIF
hold one frame (more are refused), and their other parts take work in proportion to their bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

MAX_SCANS = 100
"""Of a JPEG: encoders write about 15. Each is a pass over all pixels, however few bytes it has."""
MAX_SEGMENTS = 1000
"""Of a JPEG's first picture, scans among them: a colour profile and the longest metadata take a few hundred."""
MAX_COSTLY = 100
"""Of each kind in ``_COSTLY``: real files have a few."""

_COSTLY = {
    "image/jpeg": (b"Exif\0\0",),  # each is joined to all before it
    "image/png": (b"iCCP", b"zTXt", b"iTXt"),  # a kilobyte of each inflates to a megabyte
}
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
"""What begins a JPEG's segment: neither stuffing nor padding, nor a marker that stands alone."""
_SCAN, _END = 0xDA, 0xD9


def has_too_many_parts(data: bytes, media_type: str) -> bool:
    """Whether decoding costs more than a file's bytes and pixels say."""
    if any(data.count(kind) > MAX_COSTLY for kind in _COSTLY.get(media_type, ())):
        return True
    return media_type == "image/jpeg" and _has_too_many_segments(data)


def _has_too_many_segments(data: bytes) -> bool:
    scans = 0
    for count, marker in enumerate(_jpeg_markers(data), start=1):
        scans += marker == _SCAN
        if scans > MAX_SCANS or count > MAX_SEGMENTS:
            return True
    return False


def _jpeg_markers(data: bytes) -> Iterator[int]:
    """The markers of a JPEG's first picture, as libjpeg finds them.

    Payloads are stepped over, and nothing behind the end is read: thumbnails, further pictures and a phone's films
    hold what looks like markers.
    """
    place = 0
    while found := _MARKER.search(data, place):
        marker, place = found[0][1], found.end()
        if marker == _END:
            return
        yield marker
        place += max(2, int.from_bytes(data[place : place + 2], "big"))
