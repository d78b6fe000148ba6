"""Draw the pictures of the evaluation set from the table in pictures.json.

Run as ``python tests/data/qta/draw.py [folder]``. Needs Pillow, and Matplotlib
for the fonts that it brings along. Every picture follows from its table row and
its id alone, so a second run draws the same pixels.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib
from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).resolve().parent
FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
INK = "#222222"
Row = dict[str, Any]
Font = ImageFont.FreeTypeFont
Draw = ImageDraw.ImageDraw

# paper -> (background, colour of the writing, title font, body font)
PAPERS: dict[str, tuple[str, str, str, str]] = {
    "ruled": ("#fdfdf6", "#24367a", "STIXGeneralBolIta", "STIXGeneralItalic"),
    "plain": ("#ffffff", INK, "DejaVuSans-Bold", "DejaVuSans"),
    "card": ("#fbf3e4", "#4a2f27", "DejaVuSerif-Bold", "DejaVuSerif-Italic"),
    "board": ("#2f5d50", "#f4f4ea", "DejaVuSans-BoldOblique", "DejaVuSans-Oblique"),
    "sticky": ("#fff2a8", "#333333", "STIXGeneralBol", "STIXGeneral"),
}
SIZES = ((512, 512), (512, 420), (440, 512), (512, 384))


def font(name: str, size: int) -> Font:
    """A font of the given file name (without its ending) and height."""
    return ImageFont.truetype(str(FONTS / f"{name}.ttf"), size)


def wrap(text: str, face: Font, width: float) -> list[str]:
    """Break a text at its spaces so that no line is wider than ``width``."""
    lines: list[str] = []
    for word in text.split():
        if lines and face.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def fit(text: str, name: str, width: float, largest: int, smallest: int = 14) -> Font:
    """The largest font in which no single word is wider than ``width``."""
    size = largest
    while size > smallest:
        face = font(name, size)
        if all(face.getlength(word) <= width for word in text.split()):
            return face
        size -= 1
    return font(name, smallest)


def block(
    draw: Draw,
    text: str,
    face: Font,
    box: tuple[float, float, float],
    fill: str,
    centred: bool = False,
) -> float:
    """Write wrapped text from (left, top) over a width; return where it ends."""
    left, top, width = box
    step = face.size * 1.25
    for line in wrap(text, face, width):
        shift = (width - face.getlength(line)) / 2 if centred else 0
        draw.text((left + shift, top), line, font=face, fill=fill)
        top += step
    return top


def shape(draw: Draw, parts: list[list[Any]], left: float, top: float, size: float) -> None:
    """Draw a shape, a list of parts in a square of 100 by 100, at a place and size."""

    def at(points: list[float]) -> list[float]:
        return [(left if number % 2 == 0 else top) + value * size / 100 for number, value in enumerate(points)]

    pen = max(1, round(size / 90))
    for part in parts:
        what, points = part[0], at(part[1])
        if what == "rect":
            draw.rectangle(points, fill=part[2], outline=INK, width=pen)
        elif what == "oval":
            draw.ellipse(points, fill=part[2], outline=INK, width=pen)
        elif what == "poly":
            draw.polygon(points, fill=part[2], outline=INK, width=pen)
        elif what == "line":
            width = max(1, round(part[2] * size / 100))
            draw.line(points, fill=INK, width=width, joint="curve")
        elif what == "arc":
            width = max(1, round(part[4] * size / 100))
            draw.arc(points, part[2], part[3], fill=INK, width=width)
        else:
            raise ValueError(f"unknown part: {what}")


def sheet(row: Row, number: int) -> tuple[Image.Image, Draw, tuple[str, str, str, str]]:
    """An empty sheet of the paper that the row names."""
    paper = PAPERS[row["paper"]]
    width, height = (400, 400) if row["paper"] == "sticky" else SIZES[number % len(SIZES)]
    picture = Image.new("RGB", (width, height), paper[0])
    draw = ImageDraw.Draw(picture)
    if row["paper"] == "ruled":
        for y in range(60, height, 32):
            draw.line((0, y, width, y), fill="#c9d7ee", width=1)
        draw.line((40, 0, 40, height), fill="#e8a0a0", width=2)
    elif row["paper"] == "card":
        draw.rectangle((10, 10, width - 11, height - 11), outline=paper[1], width=2)
    elif row["paper"] == "board":
        draw.rectangle((0, 0, width - 1, height - 1), outline="#8a6a45", width=12)
    return picture, draw, paper


def list_page(row: Row, number: int) -> Image.Image:
    """A heading and a numbered list with nothing after the numbers."""
    picture, draw, (_, ink, bold, plain) = sheet(row, number)
    width, height = picture.size
    face = fit(row["title"], bold, width - 110, 34)
    end = block(draw, row["title"], face, (55, 34, width - 100), ink)
    step = min(70.0, (height - end - 30) / row["n"])
    for place in range(row["n"]):
        y = end + 14 + place * step
        draw.text((58, y), f"{place + 1}.", font=font(plain, 30), fill=ink)
    return picture


def note(row: Row, number: int) -> Image.Image:
    """A heading and a few lines of text."""
    picture, draw, (_, ink, bold, plain) = sheet(row, number)
    width = picture.size[0]
    face = fit(row["title"], bold, width - 110, 36)
    top = block(draw, row["title"], face, (55, 34, width - 100), ink) + 16
    for line in row["lines"]:
        body = font(plain, 30)
        while body.getlength(line) > width - 80:
            body = font(plain, int(body.size) - 1)
        draw.text((58, top), line, font=body, fill=ink)
        top += 44
    return picture


def sign(row: Row, number: int) -> Image.Image:
    """A board on a post with centred capitals."""
    width, height = 512, 420 if number % 2 else 480
    picture = Image.new("RGB", (width, height), "#dfe9ee")
    draw = ImageDraw.Draw(picture)
    draw.rectangle((236, height - 110, 276, height), fill="#8a6a45", outline=INK)
    board = (24, 24, width - 24, height - 90)
    draw.rounded_rectangle(board, 18, fill=row["bg"], outline=INK, width=5)
    lines = row["lines"]
    step = (board[3] - board[1] - 30) / len(lines)
    for place, line in enumerate(lines):
        face = font("DejaVuSans-Bold", 54)
        while face.getlength(line) > width - 90 or face.size > step * 0.8:
            face = font("DejaVuSans-Bold", int(face.size) - 1)
        middle = board[1] + 15 + step * (place + 0.5)
        draw.text((width / 2, middle), line, font=face, fill=INK, anchor="mm")
    return picture


def poster(row: Row, number: int, shapes: dict[str, Any]) -> Image.Image:
    """A title, one shape, and a line at the foot."""
    width, height = 420 + number % 3 * 20, 500
    picture = Image.new("RGB", (width, height), row["bg"])
    draw = ImageDraw.Draw(picture)
    draw.rectangle((8, 8, width - 9, height - 9), outline=INK, width=3)
    face = fit(row["title"], "DejaVuSans-Bold", width - 60, 40)
    end = block(draw, row["title"], face, (30, 28, width - 60), INK, centred=True)
    foot = height - (110 if row["footer"] else 40)
    size = min(foot - end - 20, 260)
    shape(draw, shapes[row["shape"]], (width - size) / 2, end + 10, size)
    body = font("DejaVuSerif", 24)
    block(draw, row["footer"], body, (30, foot + 12, width - 60), INK, centred=True)
    return picture


def chat(row: Row) -> Image.Image:
    """Speech bubbles of a telephone chat, left and right."""
    width, top, face = 440, 24.0, font("DejaVuSans", 22)
    picture = Image.new("RGB", (width, 420), "#e5ddd5")
    draw = ImageDraw.Draw(picture)
    for side, text in row["bubbles"]:
        lines = wrap(text, face, 270)
        wide = max(face.getlength(line) for line in lines) + 32
        tall = len(lines) * 28 + 24
        left = 18 if side == "l" else width - 18 - wide
        colour = "#ffffff" if side == "l" else "#d8f7c6"
        draw.rounded_rectangle((left, top, left + wide, top + tall), 16, fill=colour)
        block(draw, text, face, (left + 16, top + 10, 270), INK)
        top += tall + 18
    return picture


def form(row: Row) -> Image.Image:
    """A title and boxes with a label over each of them."""
    width = 480
    height = 110 + 90 * len(row["fields"])
    picture = Image.new("RGB", (width, height), "#f3f3f0")
    draw = ImageDraw.Draw(picture)
    face = font("DejaVuSans-Bold", 28)
    end = block(draw, row["title"], face, (24, 22, width - 48), INK)
    draw.line((24, end + 4, width - 24, end + 4), fill=INK, width=2)
    top = end + 18
    for label in row["fields"]:
        body = font("DejaVuSansMono", 20)
        while body.getlength(label) > width - 48:
            body = font("DejaVuSansMono", int(body.size) - 1)
        draw.text((24, top), label, font=body, fill=INK)
        draw.rectangle((24, top + 28, width - 24, top + 66), fill="#ffffff", outline="#777777")
        top += 84
    return picture


def scene(row: Row, shapes: dict[str, Any]) -> Image.Image:
    """Shapes at their places, and no words."""
    picture = Image.new("RGB", (512, 460), row["bg"])
    draw = ImageDraw.Draw(picture)
    for name, left, top, size in row["items"]:
        shape(draw, shapes[name], left, top, size)
    return picture


def render(key: str, row: Row, shapes: dict[str, Any]) -> Image.Image:
    """The picture of one row."""
    number = int(key.rsplit("-", 1)[1])
    layout = row["layout"]
    if layout == "list":
        return list_page(row, number)
    if layout == "note":
        return note(row, number)
    if layout == "sign":
        return sign(row, number)
    if layout == "poster":
        return poster(row, number, shapes)
    if layout == "chat":
        return chat(row)
    if layout == "form":
        return form(row)
    if layout == "scene":
        return scene(row, shapes)
    raise ValueError(f"{key}: unknown layout {layout}")


def main(argv: list[str]) -> None:
    """Draw all pictures into a folder (by default images/ beside this file)."""
    folder = Path(argv[1]) if len(argv) > 1 else HERE / "images"
    folder.mkdir(parents=True, exist_ok=True)
    table = json.loads((HERE / "pictures.json").read_text(encoding="utf-8"))
    for key, row in table["pictures"].items():
        picture = render(key, row, table["shapes"]).quantize(48)
        picture.save(folder / f"{key}.png", optimize=True)


if __name__ == "__main__":
    main(sys.argv)
