"""Images of a corpus: checked by the proxy's own rule and limits, kept as RGB PNG files no larger than auditors see."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

from PIL import Image

from guardtrace_proxy.images import Budget, ImageError, ImageLimits, decode_image
from guardtrace_proxy.images.fitting import MAX_STRETCH, is_too_stretched, smaller
from guardtrace_trainer.endpoints import MIME
from guardtrace_trainer.steps import StepError, file_hash

LIMITS = ImageLimits()
"""What the proxy allows the images of one request by default."""
IMAGES = "images"


def read_picture(path: Path) -> Image.Image:
    """An image file as RGB.

    Raises:
        StepError: it can't be read, or the proxy wouldn't take it.
    """
    mime = MIME.get(path.suffix.lower())
    if mime is None:
        raise StepError(f"{path}: expected an image that ends in {', '.join(MIME)}")
    try:
        return decode_picture(path.read_bytes(), mime)
    except OSError as error:
        raise StepError(f"{path}: can't be read ({error.strerror})") from error
    except ImageError as error:
        raise StepError(f"{path}: {error}; replace it or take it away") from error


def decode_picture(data: bytes, mime: str) -> Image.Image:
    """An image as RGB, made smaller where the proxy would make it smaller for its auditor.

    Raises:
        ImageError: the proxy wouldn't take it, or its auditor.
    """
    pixels = decode_image(data, mime, Budget(LIMITS), "image")
    if is_too_stretched(*pixels.size):  # before anybody is paid for a trace of it
        raise ImageError("image", f"it is more than {MAX_STRETCH} times as long as wide")
    return smaller(pixels)


def media_type(data: bytes) -> str | None:
    """Of an image's bytes, by how they begin; None where it is none that chat APIs take."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return "image/gif" if data[:6] in (b"GIF87a", b"GIF89a") else None


def save_picture(pixels: Image.Image, path: Path) -> str:
    """Write a PNG file in one move; returns its SHA-256."""
    data = io.BytesIO()
    pixels.save(data, "PNG", compress_level=3)  # twice as fast as 6, and photographs get no larger
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".new")
    part.write_bytes(data.getvalue())
    part.replace(path)
    return hashlib.sha256(data.getvalue()).hexdigest()


def folder_pictures(folder: Path, option: str) -> list[Path]:
    """The image files of a folder, by name.

    Raises:
        StepError: there is no such folder, or none in it; ``option`` is who asks.
    """
    if not folder.is_dir():
        raise StepError(f"{option} {folder}: no such folder")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in MIME and path.is_file())
    if not found:
        raise StepError(f"{option} {folder}: holds no image; expected files that end in {', '.join(MIME)}")
    return found


def folder_hash(paths: list[Path]) -> str:
    """SHA-256 over names and contents of files."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.name}\n{file_hash(path)}\n".encode())
    return digest.hexdigest()
