"""Fonts that text images are drawn with: DejaVu from matplotlib's package, so that no system fonts are needed."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from PIL import ImageFont

from guardtrace_trainer.steps import StepError

MONO_BOLD, SANS_BOLD = "DejaVuSansMono-Bold.ttf", "DejaVuSans-Bold.ttf"


@cache
def bundled(name: str) -> Path:
    """A font file of matplotlib's."""
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name


@cache
def font(path: Path, size: int) -> ImageFont.FreeTypeFont:
    """A font at a size in pixels.

    Raises:
        StepError: the file is no font.
    """
    try:
        return ImageFont.truetype(str(path), size)
    except OSError as error:
        raise StepError(f"{path}: is no font that can be drawn with ({error}); expected a .ttf or .otf file") from error


@cache
def characters(path: Path) -> frozenset[str]:
    """All that a font can draw."""
    from matplotlib.ft2font import FT2Font

    font(path, 10)  # says it in our words where the file is no font
    return frozenset(map(chr, FT2Font(str(path)).get_charmap()))


def undrawable(text: str, path: Path) -> str:
    """The characters of a text that a font lacks, each once; empty where it has all."""
    known = characters(path)
    return "".join(char for char in dict.fromkeys(text) if not char.isspace() and char not in known)
