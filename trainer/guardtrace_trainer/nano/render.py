"""Images for the corpus: words in the manner of FigStep, pictograms, and scenes that mean nothing.

Each comes with dense labels: the class of every 28-pixel cell (what one vision token covers) and the letter of every
14-pixel patch. They are what the vision tower learns from.
"""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from guardtrace_trainer.nano.pictograms import HARMFUL_PICTOGRAMS, SAFE_PICTOGRAMS, color, pictogram

SIDE = 112
"""Pixels; the processor of the checkpoint brings every image to about this size."""
CELL, PATCH = 28, 14
CELLS, PATCHES = SIDE // CELL, SIDE // PATCH

NEUTRAL_WORDS = "MAKE BUILD STEPS LIST HOW TO BUY USE FIND PLAN GET TIPS FOR WAYS".split()
HARMFUL_WORDS = "BOMB POISON WEAPON FRAUD HACK STEAL DRUGS BREACH ARSON FORGE SPY VIRUS GUN THEFT BRIBE ROB".split()
SAFE_WORDS = "CAKE GARDEN GUITAR TEA KITE BREAD PAINT CHAIR SOUP LAMP BOAT MUSIC PIZZA PIANO SHIRT FLOWER".split()
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
        layer = pictogram(picture.words[0], rng).resize((size, size), Image.Resampling.BILINEAR)
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


def _page(words: tuple[str, ...], rng: random.Random, held_out: bool) -> Drawing:
    image = Image.new("RGB", (SIDE, SIDE), color(rng, 235, 255))
    name = rng.choice(HELD_OUT_FONTS if held_out else TRAINING_FONTS)
    stretch, slant = (1.0, 0.0) if held_out else (rng.uniform(0.85, 1.15), rng.choice((0.0, rng.uniform(-0.1, 0.3))))
    widest = max(stretch * font(name, 20).getlength(word) for word in words)
    largest = min(30, int(20 * 108 / widest), int(106 / len(words) / 0.85))
    face = font(name, rng.randint(min(15, largest), min(27, largest)))
    widths = [stretch * face.getlength(word) for word in words]
    ascent = 0.74 * face.size
    line = min(rng.uniform(0.9, 1.25) * face.size, (SIDE - 4 - ascent) / max(1, len(words) - 1))
    y = rng.uniform(2, max(2.1, SIDE - line * (len(words) - 1) - ascent - 2))
    ink = color(rng, 0, 80)
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
        ends = [np.array(color(rng, 150, 255), float) for _ in range(2)]
        ramp = np.linspace(0, 1, SIDE)
        share = (ramp[:, None] + ramp[None]) / 2 if rng.random() < 0.5 else np.repeat(ramp[:, None], SIDE, 1)
        image = Image.fromarray((ends[0] + (ends[1] - ends[0]) * share[..., None]).astype(np.uint8))
    else:
        image = Image.new("RGB", (SIDE, SIDE), color(rng, 150, 255))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.randint(0, 5)):
        x, y = rng.randint(0, SIDE), rng.randint(0, SIDE)
        if held_out:
            radius = rng.randint(1, 3)
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color(rng, 60, 220))
        else:
            end = x + rng.randint(-30, 30), y + rng.randint(-30, 30)
            draw.line((x, y, *end), fill=color(rng, 80, 220), width=rng.randint(1, 2))
    return image


def _scene(rng: random.Random) -> Image.Image:
    """Something like a photograph: sky over ground, blobs and noise of several sizes."""
    noise = np.random.default_rng(rng.getrandbits(32))
    field = np.zeros((SIDE, SIDE, 3))
    for size in (2, 4, 8, 16, 32):
        small = Image.fromarray(noise.integers(0, 255, (size, size, 3), dtype=np.uint8))
        field += np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC), float) / size**0.5
    field = 255 * (field - field.min()) / np.ptp(field)
    tint = np.array(color(rng, 60, 255), float) / 255
    image = Image.fromarray((field * tint).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    if rng.random() < 0.6:
        horizon = rng.randint(25, 85)
        draw.rectangle((0, 0, SIDE, horizon), fill=color(rng, 90, 255))
    for _ in range(rng.randint(0, 9)):
        x, y = rng.randint(-10, SIDE), rng.randint(-10, SIDE)
        box = (x, y, x + rng.randint(4, 50), y + rng.randint(4, 50))
        shape = rng.choice((draw.rectangle, draw.ellipse))
        shape(box, fill=color(rng, 0, 255))
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
