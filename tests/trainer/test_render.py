"""Drawings and their dense labels: the same for a seed, and the labels stand where the ink stands."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardtrace_trainer.nano import pictograms
from guardtrace_trainer.nano import render as drawing
from guardtrace_trainer.nano.render import (
    CELL,
    CELLS,
    CLASS_IDS,
    CLASSES,
    PATCH,
    PATCHES,
    SIDE,
    UNSURE,
    WORDS,
    Drawing,
    Picture,
    any_picture,
    page,
    render,
)

pytest.importorskip("matplotlib", reason="the extra `train` isn't installed")

SEEDS = st.integers(0, 2**32)
PICTOGRAMS = (*pictograms.HARMFUL_PICTOGRAMS, *pictograms.SAFE_PICTOGRAMS)


def draw(picture: Picture, seed: int, held_out: bool = False) -> Drawing:
    return render(picture, random.Random(seed), held_out)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.booleans())
def test_a_seed_gives_the_same_drawing(seed, held_out):
    def make() -> Drawing:
        rng = random.Random(seed)
        return render(any_picture(rng), rng, held_out)

    for one, other in zip(make(), make(), strict=True):
        assert np.array_equal(one, other)


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.booleans())
def test_shapes_and_ranges(seed, held_out):
    rng = random.Random(seed)
    picture = any_picture(rng)
    pixels, cells, letters = render(picture, rng, held_out)
    assert (pixels.shape, pixels.dtype) == ((SIDE, SIDE, 3), np.uint8)
    assert (cells.shape, letters.shape) == ((CELLS, CELLS), (PATCHES, PATCHES))
    assert set(cells.flat) <= {UNSURE, *range(len(CLASSES))}
    named = {CLASSES[number] for number in cells.flat if number > 0}
    kind = {"words": "word", "pictogram": "pictogram"}.get(picture.kind)
    assert named <= {f"{kind} {word}" for word in picture.words}
    assert (letters.max() == 0) == (picture.kind != "words")
    assert {chr(64 + number) for number in letters.flat if number} <= {c for word in picture.words for c in word}


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.sampled_from([*drawing.HARMFUL_WORDS, *drawing.SAFE_WORDS]), st.booleans())
def test_letters_of_a_word_stand_in_reading_order(seed, noun, held_out):
    _, _, letters = render(drawing.Picture("words", (noun,)), random.Random(seed), held_out)
    rows = ["".join(dict.fromkeys(chr(64 + n) for n in row if n)) for row in letters]
    assert any(rows)
    for row in filter(None, rows):
        assert _in_order(row, noun)


def test_nearly_every_page_has_a_cell_that_is_sure_of_the_word_that_matters():
    # Where lines are close, a small word may lie between cells that its neighbours cover more.
    rng = random.Random(1)
    nouns = [rng.choice((*drawing.HARMFUL_WORDS, *drawing.SAFE_WORDS)) for _ in range(400)]
    seen = [CLASS_IDS[f"word {noun}"] in render(page(rng, noun), rng).cells for noun in nouns]
    assert sum(seen) >= 0.95 * len(seen)


def _in_order(letters: str, word: str) -> bool:
    rest = iter(word)
    return all(letter in rest for letter in letters)


@pytest.mark.parametrize("word", ["GUN", "FLOWER", "TO"])
@pytest.mark.parametrize("held_out", [False, True])
def test_ink_stands_where_letters_are_marked(word, held_out):
    for seed in range(15):
        pixels, _, letters = draw(Picture("words", (word,)), seed, held_out)
        gray = pixels.mean(2)
        paper = np.median(gray)
        darkest = gray.reshape(PATCHES, PATCH, PATCHES, PATCH).min((1, 3))
        marked = letters > 0
        assert marked.any()
        assert darkest[marked].mean() < paper - 60
        # Ink far from every mark would be a letter that the labels don't know.
        near = np.pad(marked, 1)
        near = sum(near[1 + y : 9 + y, 1 + x : 9 + x].astype(int) for y in (-1, 0, 1) for x in (-1, 0, 1)) > 0
        assert (darkest[~near] > paper - 90).all()


@pytest.mark.parametrize("name", PICTOGRAMS)
@pytest.mark.parametrize("held_out", [False, True])
def test_a_pictogram_is_labelled_where_it_was_drawn(name, held_out):
    for seed in range(8):
        _, cells, letters = draw(Picture("pictogram", (name,)), seed, held_out)
        rows, columns = np.nonzero(cells == CLASS_IDS[f"pictogram {name}"])
        assert len(rows)
        assert np.ptp(rows) < CELLS
        assert (np.ptp(rows) + 1) * (np.ptp(columns) + 1) >= len(rows)
        assert not letters.any()


def test_scenes_and_empty_backgrounds_mean_nothing():
    for kind in ("scene", "empty"):
        for held_out in (False, True):
            pixels, cells, letters = draw(Picture(kind), 3, held_out)
            assert not cells.any()
            assert not letters.any()
            assert pixels.std() > 0


def test_cells_are_sure_above_a_share_and_unsure_between():
    number = 5
    whole = drawing._cells([(number, (0, 0, CELL, CELL))])
    assert whole[0, 0] == number
    assert whole.sum() == number
    side = CELL * 0.30
    assert drawing._cells([(number, (0, 0, side, side))])[0, 0] == UNSURE
    side = CELL * 0.20
    assert drawing._cells([(number, (0, 0, side, side))])[0, 0] == 0
    assert drawing._cells([])[0, 0] == 0


def test_the_larger_share_wins():
    cells = drawing._cells([(3, (0, 0, CELL, 10)), (4, (0, 10, CELL, CELL))])
    assert cells[0, 0] == 4


def test_fonts_held_out_are_never_trained_on_and_words_never_both():
    assert not set(drawing.TRAINING_FONTS) & set(drawing.HELD_OUT_FONTS)
    assert len(set(WORDS)) == len(WORDS)
    assert set(pictograms.FIGURES) == set(PICTOGRAMS)
    assert len(set(CLASSES)) == len(CLASSES)


@pytest.mark.parametrize("name", [*drawing.TRAINING_FONTS, *drawing.HELD_OUT_FONTS])
def test_every_font_is_there(name):
    assert drawing.font(name, 20).getlength("GUN") > 10
