"""The pictograms that the embedded auditor knows, drawn from a few shapes each."""

from __future__ import annotations

import math
import random

from PIL import Image, ImageDraw

HARMFUL_PICTOGRAMS = ("hazard", "skull", "meter", "bomb", "knife")
SAFE_PICTOGRAMS = ("mug", "tree", "house", "star", "ball", "book")
Color = tuple[int, int, int]


def color(rng: random.Random, low: int, high: int) -> Color:
    """A random one, each channel from ``low`` to ``high``."""
    return rng.randint(low, high), rng.randint(low, high), rng.randint(low, high)


def pictogram(name: str, rng: random.Random) -> Image.Image:
    """A transparent layer of 64 × 64 pixels with the pictogram of that name, in random colours."""
    layer = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    draw = ImageDraw.Draw(layer)
    main, light, dark = (*color(rng, 0, 150), 255), (*color(rng, 170, 255), 255), (*color(rng, 0, 60), 255)
    FIGURES[name](draw, main, light, dark, rng.randint(3, 6))
    return layer


def _hazard(draw, main, light, dark, width) -> None:  # type: ignore[no-untyped-def]
    draw.polygon([(32, 2), (62, 32), (32, 62), (2, 32)], fill=light, outline=dark)
    draw.line([(32, 3), (61, 32), (32, 61), (3, 32), (32, 3)], fill=main, width=width)
    draw.rectangle((29, 16, 35, 38), fill=dark)
    draw.ellipse((28, 42, 36, 50), fill=dark)


def _skull(draw, main, light, dark, width) -> None:  # type: ignore[no-untyped-def]
    draw.ellipse((10, 4, 54, 44), fill=light, outline=dark, width=2)
    draw.rectangle((20, 38, 44, 56), fill=light, outline=dark, width=2)
    draw.ellipse((18, 18, 29, 30), fill=dark)
    draw.ellipse((35, 18, 46, 30), fill=dark)
    draw.polygon([(32, 30), (28, 38), (36, 38)], fill=dark)
    for x in (26, 32, 38):
        draw.line((x, 44, x, 56), fill=dark, width=2)


def _meter(draw, main, light, dark, width) -> None:  # type: ignore[no-untyped-def]
    draw.rectangle((6, 2, 58, 62), fill=main, outline=dark, width=2)
    draw.ellipse((18, 6, 46, 32), fill=light, outline=dark, width=2)
    draw.line((32, 20, 40, 11), fill=dark, width=3)
    draw.arc((24, 34, 40, 52), 180, 360, fill=light, width=3)
    draw.rectangle((20, 44, 44, 59), fill=light, outline=dark)


def _bomb(draw, main, light, dark, width) -> None:  # type: ignore[no-untyped-def]
    draw.ellipse((6, 18, 50, 62), fill=dark, outline=main, width=2)
    draw.rectangle((32, 12, 44, 22), fill=main)
    draw.arc((36, 2, 60, 24), 180, 300, fill=main, width=3)
    draw.polygon([(52, 2), (62, 4), (56, 12)], fill=light)


def _knife(draw, main, light, dark, width) -> None:  # type: ignore[no-untyped-def]
    draw.polygon([(4, 10), (40, 28), (36, 38), (10, 26)], fill=light, outline=dark)
    draw.polygon([(38, 28), (62, 42), (58, 52), (34, 38)], fill=main, outline=dark)


def _mug(draw, main, light, dark, width) -> None:  # type: ignore[no-untyped-def]
    draw.rectangle((10, 14, 44, 56), fill=main, outline=dark, width=2)
    draw.arc((36, 22, 60, 48), 270, 90, fill=main, width=width + 1)


def _tree(draw, main, light, dark, width) -> None:  # type: ignore[no-untyped-def]
    draw.rectangle((28, 40, 36, 62), fill=dark)
    draw.ellipse((10, 2, 54, 44), fill=main)


def _house(draw, main, light, dark, width) -> None:  # type: ignore[no-untyped-def]
    draw.rectangle((12, 30, 52, 60), fill=light, outline=dark, width=2)
    draw.polygon([(32, 4), (4, 30), (60, 30)], fill=main)
    draw.rectangle((27, 42, 37, 60), fill=dark)


def _star(draw, main, light, dark, width) -> None:  # type: ignore[no-untyped-def]
    radii = [30 if point % 2 == 0 else 12 for point in range(10)]
    angles = [-math.pi / 2 + point * math.pi / 5 for point in range(10)]
    points = [(32 + r * math.cos(a), 32 + r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]
    draw.polygon(points, fill=main)


def _ball(draw, main, light, dark, width) -> None:  # type: ignore[no-untyped-def]
    draw.ellipse((4, 4, 60, 60), fill=main)
    draw.arc((4, -20, 60, 36), 20, 160, fill=light, width=width)
    draw.arc((4, 28, 60, 84), 200, 340, fill=light, width=width)


def _book(draw, main, light, dark, width) -> None:  # type: ignore[no-untyped-def]
    draw.polygon([(4, 12), (32, 18), (32, 58), (4, 52)], fill=main, outline=dark)
    draw.polygon([(60, 12), (32, 18), (32, 58), (60, 52)], fill=main, outline=dark)
    for y in (24, 32, 40):
        draw.line((9, y, 27, y + 4), fill=light, width=2)
        draw.line((37, y + 4, 55, y), fill=light, width=2)


FIGURES = {
    "hazard": _hazard,
    "skull": _skull,
    "meter": _meter,
    "bomb": _bomb,
    "knife": _knife,
    "mug": _mug,
    "tree": _tree,
    "house": _house,
    "star": _star,
    "ball": _ball,
    "book": _book,
}
