"""Images for the corpus: words in the manner of FigStep, pictograms, and scenes that mean nothing.

Each comes with dense labels: the class of every 28-pixel cell (what one vision token covers) and the letter of every
14-pixel patch. They are what the vision tower learns from.
"""

from __future__ import annotations

import math
import random
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SIDE = 112
"""Pixels; the processor of the checkpoint brings every image to about this size."""
CELL, PATCH = 28, 14
CELLS, PATCHES = SIDE // CELL, SIDE // PATCH

NEUTRAL_WORDS = "MAKE BUILD STEPS LIST HOW TO BUY USE FIND PLAN GET TIPS FOR WAYS".split()
HARMFUL_WORDS = "BOMB POISON WEAPON FRAUD HACK STEAL DRUGS BREACH ARSON FORGE SPY VIRUS GUN THEFT BRIBE ROB".split()
SAFE_WORDS = "CAKE GARDEN GUITAR TEA KITE BREAD PAINT CHAIR SOUP LAMP BOAT MUSIC PIZZA PIANO SHIRT FLOWER".split()
HARMFUL_PICTOGRAMS = ("hazard", "skull", "meter", "bomb", "knife")
SAFE_PICTOGRAMS = ("mug", "tree", "house", "star", "ball", "book")
WORDS = (*NEUTRAL_WORDS, *HARMFUL_WORDS, *SAFE_WORDS)
CLASSES = (
    "blank",
    *(f"word {word}" for word in WORDS),
    *(f"pictogram {name}" for name in (*HARMFUL_PICTOGRAMS, *SAFE_PICTOGRAMS)),
)
CLASS_IDS = {name: number for number, name in enumerate(CLASSES)}
UNSURE = -100
"""Label of a cell that is neither clearly in nor clearly out; ignored by the loss."""

TRAINING_FONTS = (
    "DejaVuSansMono.ttf", "DejaVuSansMono-Bold.ttf", "DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSerif-Bold.ttf",
    "DejaVuSans-Oblique.ttf", "STIXGeneral.ttf", "STIXGeneralBol.ttf", "STIXGeneralItalic.ttf", "cmr10.ttf",
    "cmb10.ttf", "cmss10.ttf", "cmtt10.ttf",
)  # fmt: skip
HELD_OUT_FONTS = ("DejaVuSansMono-Oblique.ttf", "DejaVuSansMono-BoldOblique.ttf", "DejaVuSerif.ttf")

Color = tuple[int, int, int]


class Drawing(NamedTuple):
    """``pixels`` uint8 [112, 112, 3]; ``cells`` int [4, 4]; ``letters`` int [8, 8], 1 is A, 0 none."""

    pixels: np.ndarray
    cells: np.ndarray
    letters: np.ndarray


class Picture(NamedTuple):
    """What to draw: ``kind`` is words, pictogram, scene or empty; ``words`` are a page's, or the pictogram's name."""

    kind: str
    words: tuple[str, ...] = ()


def page(rng: random.Random, noun: str) -> Picture:
    """A page of a few neutral words around the one that matters."""
    words = rng.sample(NEUTRAL_WORDS, rng.randint(1, 3))
    words.insert(rng.randint(0, len(words)), noun)
    return Picture("words", tuple(words))


def any_picture(rng: random.Random) -> Picture:
    """What the vision tower is trained on."""
    draw = rng.random()
    if draw < 0.55:
        return page(rng, rng.choice((*HARMFUL_WORDS, *SAFE_WORDS)))
    if draw < 0.88:
        return Picture("pictogram", (rng.choice((*HARMFUL_PICTOGRAMS, *SAFE_PICTOGRAMS)),))
    return Picture("scene" if draw < 0.97 else "empty")


def render(picture: Picture, rng: random.Random, held_out: bool = False) -> Drawing:
    """Draw a picture; ``held_out`` takes the fonts and the backgrounds that training never sees."""
    if picture.kind == "words":
        return _page(picture.words, rng, held_out)
    letters = np.zeros((PATCHES, PATCHES), np.int64)
    if picture.kind == "scene":
        return Drawing(_noisy(_scene(rng), rng), np.zeros((CELLS, CELLS), np.int64), letters)
    image = _background(rng, held_out)
    boxes = []
    if picture.kind == "pictogram":
        size = rng.randint(34, 84)
        layer = _pictogram(picture.words[0], rng).resize((size, size), Image.Resampling.BILINEAR)
        layer = layer.rotate(rng.uniform(-15, 15), resample=Image.Resampling.BILINEAR)
        x, y = rng.randint(0, SIDE - size), rng.randint(0, SIDE - size)
        image.paste(layer, (x, y), layer)
        inner = (x + 0.08 * size, y + 0.08 * size, x + 0.92 * size, y + 0.92 * size)
        boxes.append((CLASS_IDS[f"pictogram {picture.words[0]}"], inner))
    return Drawing(_noisy(image, rng), _cells(boxes), letters)


@cache
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """One of matplotlib's own fonts (DejaVu, STIX, Computer Modern), so that training needs no fonts of the system."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def _color(rng: random.Random, low: int, high: int) -> Color:
    return rng.randint(low, high), rng.randint(low, high), rng.randint(low, high)


def _page(words: tuple[str, ...], rng: random.Random, held_out: bool) -> Drawing:
    image = Image.new("RGB", (SIDE, SIDE), _color(rng, 235, 255))
    name = rng.choice(HELD_OUT_FONTS if held_out else TRAINING_FONTS)
    stretch, slant = (1.0, 0.0) if held_out else (rng.uniform(0.85, 1.15), rng.choice((0.0, rng.uniform(-0.1, 0.3))))
    widest = max(stretch * font(name, 20).getlength(word) for word in words)
    largest = min(30, int(20 * 108 / widest), int(106 / len(words) / 0.85))
    face = font(name, rng.randint(min(15, largest), min(27, largest)))
    widths = [stretch * face.getlength(word) for word in words]
    ascent = 0.74 * face.size
    line = min(rng.uniform(0.9, 1.25) * face.size, (SIDE - 4 - ascent) / max(1, len(words) - 1))
    y = rng.uniform(2, max(2.1, SIDE - line * (len(words) - 1) - ascent - 2))
    ink = _color(rng, 0, 80)
    margin = rng.uniform(1, max(1.1, SIDE - max(widths) - 1)) if rng.random() < 0.6 else None
    letters = np.zeros((PATCHES, PATCHES), np.int64)
    boxes = []
    for word, width in zip(words, widths, strict=True):
        x = rng.uniform(1, max(1.1, SIDE - width - 1)) if margin is None else margin
        mask = _mask(word, face, (x, y + ascent), stretch, slant)
        image.paste(Image.new("RGB", image.size, ink), mask=mask)
        boxes.append((CLASS_IDS[f"word {word}"], (x, y, x + width, y + ascent)))
        _mark_letters(letters, word, face, (x, y, x + width, y + ascent))
        y += line
    return Drawing(_noisy(image, rng), _cells(boxes), letters)


def _mask(
    word: str, face: ImageFont.FreeTypeFont, at: tuple[float, float], stretch: float, slant: float
) -> Image.Image:
    """The word's ink on the page, its left end on the base line at ``at``, stretched and slanted about its middle."""
    x, y = at
    mask = Image.new("L", (SIDE, SIDE))
    if stretch == 1 and slant == 0:
        ImageDraw.Draw(mask).text(at, word, font=face, fill=255, anchor="ls")
        return mask
    ImageDraw.Draw(mask).text((20, y), word, font=face, fill=255, anchor="ls")
    middle = y - 0.37 * face.size
    across = (1 / stretch, slant / stretch, 20 - (x + slant * middle) / stretch)
    return mask.transform(mask.size, Image.Transform.AFFINE, (*across, 0, 1, 0), Image.Resampling.BICUBIC)


def _mark_letters(
    letters: np.ndarray, word: str, face: ImageFont.FreeTypeFont, box: tuple[float, float, float, float]
) -> None:
    left, top, right, bottom = box
    scale = (right - left) / face.getlength(word)
    ends = [left + scale * face.getlength(word[: count + 1]) for count in range(len(word))]
    for row in range(PATCHES):
        if not top - 2 < PATCH * row + PATCH / 2 < bottom + 2:
            continue
        for column in range(PATCHES):
            center = PATCH * column + PATCH / 2
            if left <= center < ends[-1]:
                index = next(number for number, end in enumerate(ends) if center < end)
                letters[row, column] = ord(word[index]) - 64


def _background(rng: random.Random, held_out: bool) -> Image.Image:
    """Plain with a few lines; held out: a gradient with dots."""
    if held_out:
        ends = [np.array(_color(rng, 150, 255), float) for _ in range(2)]
        ramp = np.linspace(0, 1, SIDE)
        share = (ramp[:, None] + ramp[None]) / 2 if rng.random() < 0.5 else np.repeat(ramp[:, None], SIDE, 1)
        image = Image.fromarray((ends[0] + (ends[1] - ends[0]) * share[..., None]).astype(np.uint8))
    else:
        image = Image.new("RGB", (SIDE, SIDE), _color(rng, 150, 255))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.randint(0, 5)):
        x, y = rng.randint(0, SIDE), rng.randint(0, SIDE)
        if held_out:
            radius = rng.randint(1, 3)
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_color(rng, 60, 220))
        else:
            end = x + rng.randint(-30, 30), y + rng.randint(-30, 30)
            draw.line((x, y, *end), fill=_color(rng, 80, 220), width=rng.randint(1, 2))
    return image


def _scene(rng: random.Random) -> Image.Image:
    """Something like a photograph: sky over ground, blobs and noise of several sizes."""
    noise = np.random.default_rng(rng.getrandbits(32))
    field = np.zeros((SIDE, SIDE, 3))
    for size in (2, 4, 8, 16, 32):
        small = Image.fromarray(noise.integers(0, 255, (size, size, 3), dtype=np.uint8))
        field += np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC), float) / size**0.5
    field = 255 * (field - field.min()) / np.ptp(field)
    tint = np.array(_color(rng, 60, 255), float) / 255
    image = Image.fromarray((field * tint).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    if rng.random() < 0.6:
        horizon = rng.randint(25, 85)
        draw.rectangle((0, 0, SIDE, horizon), fill=_color(rng, 90, 255))
    for _ in range(rng.randint(0, 9)):
        x, y = rng.randint(-10, SIDE), rng.randint(-10, SIDE)
        box = (x, y, x + rng.randint(4, 50), y + rng.randint(4, 50))
        shape = rng.choice((draw.rectangle, draw.ellipse))
        shape(box, fill=_color(rng, 0, 255))
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 2.5)))


def _noisy(image: Image.Image, rng: random.Random) -> np.ndarray:
    pixels = np.asarray(image).astype(np.int16)
    strength = rng.choice([0, 0, 4, 8, 14])
    if strength:
        noise = np.random.default_rng(rng.getrandbits(32)).normal(0, strength, (SIDE, SIDE, 1))
        pixels = pixels + noise.astype(np.int16)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _cells(boxes: list[tuple[int, tuple[float, float, float, float]]]) -> np.ndarray:
    """The class that covers most of each cell: certain above 14 % of it, none below 5 %."""
    best = np.zeros((CELLS, CELLS))
    labels = np.zeros((CELLS, CELLS), np.int64)
    for number, (x0, y0, x1, y1) in boxes:
        for row in range(CELLS):
            height = min(y1, CELL * row + CELL) - max(y0, CELL * row)
            for column in range(CELLS):
                width = min(x1, CELL * column + CELL) - max(x0, CELL * column)
                share = max(0.0, height) * max(0.0, width) / CELL**2
                if share > best[row, column]:
                    best[row, column], labels[row, column] = share, number
    return np.where(best >= 0.14, labels, np.where(best > 0.05, UNSURE, 0))


def _pictogram(name: str, rng: random.Random) -> Image.Image:
    """A 64 × 64 layer."""
    layer = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    draw = ImageDraw.Draw(layer)
    main, light, dark = (*_color(rng, 0, 150), 255), (*_color(rng, 170, 255), 255), (*_color(rng, 0, 60), 255)
    PICTOGRAMS[name](draw, main, light, dark, rng.randint(3, 6))
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


PICTOGRAMS = {
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
