"""The FigStep layout: a golden image, its figures, titles, and the published images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from guardtrace_trainer.corpus import figstep
from guardtrace_trainer.corpus.fonts import bundled

GOLDEN = Path(__file__).parent / "golden" / "figstep.png"
"""``small(figstep.draw(TITLE))``, looked at before it was kept."""
TITLE = "Steps to bake a large loaf of sourdough bread."
PUBLISHED = Path(__file__).parents[4] / "shared" / "data" / "figstep"


def small(image: Image.Image) -> np.ndarray:
    """[95, 95]: grey, an eighth of the size, so that another version of FreeType moves no value far."""
    return np.asarray(image.convert("L").reduce(8), float)


def ink(image: Image.Image) -> np.ndarray:
    """bool [760, 760]: where there is text."""
    return np.asarray(image.convert("L")) < 128


def widths(image: Image.Image, lines: int) -> list[float]:
    """How far each line reaches, in characters. Only rows that are its own: from cap height to baseline."""
    reach = []
    for line in range(lines):
        baseline = figstep.FIRST_BASELINE + line * figstep.PITCH
        columns = np.flatnonzero(ink(image)[baseline - 35 : baseline - 1].any(0))
        reach.append((columns[-1] - figstep.LEFT) / 48 if len(columns) else 0)
    return reach


def test_the_golden_image():
    golden = np.asarray(Image.open(GOLDEN), float)
    drawn = figstep.draw(TITLE)
    assert np.abs(small(drawn) - golden).mean() < 1.5
    for dx, dy in ((8, 0), (0, 8)):
        assert np.abs(small(Image.fromarray(np.roll(np.asarray(drawn), (dy, dx), (0, 1)))) - golden).mean() > 8
    assert np.abs(small(figstep.draw(TITLE.replace("large", "small"))) - golden).mean() > 1.5


def test_the_figures_of_the_layout():
    drawn = figstep.draw(TITLE)
    assert (drawn.size, drawn.mode) == ((760, 760), "RGB")
    assert set(np.asarray(drawn)[:, : figstep.LEFT].flat) == {255}
    lines = ["Steps to bake a", "large loaf of", "sourdough", "bread.", "1.", "2.", "3."]
    assert [round(width) for width in widths(drawn, len(lines))] == [len(line) for line in lines]
    assert not ink(drawn)[figstep.FIRST_BASELINE + 6 * figstep.PITCH + 2 :].any()


def test_a_long_title_is_drawn_smaller_and_whole():
    drawn = figstep.draw("Steps to " + "grow vegetables on a balcony, " * 8)
    rows, columns = np.flatnonzero(ink(drawn).any(1)), np.flatnonzero(ink(drawn).any(0))
    assert 600 < rows[-1] < 755
    assert columns[-1] < 755
    with pytest.raises(figstep.Undrawable, match="characters are too many"):
        figstep.draw("very long " * 200)


def test_a_font_that_lacks_characters_is_not_drawn_with():
    with pytest.raises(figstep.Undrawable, match=r"DejaVuSansMono-Bold\.ttf lacks '如何'; give one .* by --font"):
        figstep.draw("Steps to 如何.")


def test_another_font():
    other = figstep.draw(TITLE, bundled("DejaVuSans.ttf"))
    assert np.abs(small(other) - small(figstep.draw(TITLE))).mean() > 3


@settings(max_examples=25)
@given(st.text("abc ,.;'é-WM", min_size=1, max_size=400).filter(str.strip))
def test_whatever_is_drawn_keeps_its_margins(text):
    drawn = ink(figstep.draw(text))
    assert drawn.any()
    assert not drawn[:, :16].any()
    assert not drawn[:, -1].any()
    assert not drawn[-1].any()


@pytest.mark.parametrize(
    ("query", "title"),
    [
        ("How do I bake bread?", "Steps to bake bread."),
        ("how to bake\n bread", "Steps to bake bread."),
        ("How can someone bake bread?", "Steps to bake bread."),
        ("Can you explain to me how to bake bread?", "Steps to bake bread."),
        ("Please tell me how I can bake bread.", "Steps to bake bread."),
        ("What is the best way to bake bread?", "Steps to bake bread."),
        ("Can you help me bake bread?", "Steps to bake bread."),
        ("What are the oldest breads?", "List of oldest breads."),
        ("Write a poem about bread.", "Steps to write a poem about bread."),
        ("Could you please write a poem?", "Steps to write a poem."),
        ("Why is bread brown?", "Points on: Why is bread brown."),
        ("如何烤面包？", "Points on: 如何烤面包."),
    ],
)
def test_titles(query, title):
    assert figstep.title(query) == title


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published images aren't here")
def test_the_published_images_have_this_layout():
    rows = [json.loads(line) for line in (PUBLISHED / "safebench.jsonl").read_text("utf-8").splitlines()]
    seen = 0
    for row in rows:
        if row["image"] is None or len(row["instruction"]) > 75:
            continue  # longer ones are cut off at the bottom there, and drawn smaller here
        with Image.open(PUBLISHED / row["image"]) as published:
            ours = figstep.draw(row["instruction"])
            assert published.size == ours.size
            pairs = zip(widths(published, 8), widths(ours, 8), strict=True)
            assert all(abs(theirs - mine) < 0.5 for theirs, mine in pairs), row["instruction"]
        seen += 1
    assert seen > 20
