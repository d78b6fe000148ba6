"""Images, speech and video in a reply: strings, but not what whoever gets them will see or hear."""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode
from typing import Any

from guardtrace_proxy.wire.strings import Path

WITH_MEDIA = "with an image or audio"
MEDIA_URL = re.compile(r"\s*data:(?:audio|image|video)/", re.IGNORECASE)
NAMES_MEDIA = re.compile(r"(?:^|[._])(?:image|audio|video|speech|base64)s?(?:$|[._/])", re.IGNORECASE)
"""A type (``image_generation_call``, ``image/png``), or the name of a field."""
SAYS_WHAT = frozenset({"type", "media_type", "mime_type", "mimeType"})
BASE64_NAME = re.compile(r"b(?:ase)?64", re.IGNORECASE)
"""The name of a field for bytes, wherever it stands."""
HOLDS_BYTES = frozenset({"data", "result", "delta"})
"""Names of fields for bytes below what is said to be media."""
BEGINNING = re.compile(r"\s*(?:data:[^,]{0,256},\s*)?([A-Za-z0-9+/_-]{32})")
"""Of base64, in a URL or not: 24 bytes."""
MAGIC = (
    b"\x89PNG\r\n",
    b"\xff\xd8\xff",  # JPEG
    b"GIF8",
    b"RIFF",  # WebP, WAV, AVI
    b"II*\0",  # TIFF
    b"MM\0*",
    b"OggS",
    b"fLaC",
    b"ID3",  # MP3
    b"\x1aE\xdf\xa3",  # WebM
)
"""What files of the usual formats begin with."""
URL_SAFE = str.maketrans("+/", "-_")


class Media(Exception):
    """An image, speech or video."""


def refuse_media(path: Path, value: Any, kind: Any = None) -> None:
    """Raise Media where a field that nobody asked for brings such. ``path`` leads to the field, ``kind`` is the type of
    what has it."""
    names = [step for step in path if isinstance(step, str)]
    _refuse(names[-1] if names else "", value, any(map(_names_media, [*names, kind])))


def _refuse(name: str, value: Any, in_media: bool) -> None:
    if isinstance(value, str):
        if value and (_is_for_bytes(name, in_media) or MEDIA_URL.match(value) or _begins_a_file(value)):
            raise Media
    elif isinstance(value, list):
        if _is_for_bytes(name, in_media) and any(isinstance(inner, int) for inner in value):
            raise Media
        for inner in value:
            _refuse(name, inner, in_media)
    elif isinstance(value, dict):
        here = in_media or any(_names_media(value.get(key)) for key in SAYS_WHAT)
        for key, inner in value.items():
            _refuse(key, inner, here or _names_media(key))


def _names_media(word: Any) -> bool:
    """Whether it says that media follow. A transcript of speech is text."""
    return isinstance(word, str) and NAMES_MEDIA.search(word) is not None and "transcript" not in word


def _is_for_bytes(name: str, in_media: bool) -> bool:
    return (in_media and name in HOLDS_BYTES) or BASE64_NAME.search(name) is not None


def _begins_a_file(value: str) -> bool:
    found = BEGINNING.match(value)
    if found is None:
        return False
    data = urlsafe_b64decode(found[1].translate(URL_SAFE))
    return data.startswith(MAGIC) or data[4:8] == b"ftyp"  # MP4, AVIF, HEIC
