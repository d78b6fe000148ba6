"""CS-DJ composites: three a row, nine distractions, the parts as coloured lettering; and how a request is parted."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageColor

from guardtrace_proxy.images.fitting import smaller
from guardtrace_trainer.corpus import csdj, figstep

COLOURS = [(200, 20 * number, 255 - 20 * number) for number in range(9)]
PARTS = ("How warm is the oven?", "How long does the dough rest?", "When is the bread done?")


def composite(seed=0, parts=PARTS):
    distractions = [Image.new("RGB", (90 + 20 * number, 120), colour) for number, colour in enumerate(COLOURS)]
    return csdj.draw(parts, distractions, random.Random(seed))


def cell(image, number):
    """[256, 256, 3]: the cell with a number from 1."""
    left, top = (number - 1) % 3 * csdj.CELL, (number - 1) // 3 * (csdj.CELL + csdj.CAPTION)
    return np.asarray(image.crop((left, top, left + csdj.CELL, top + csdj.CELL)))


def test_three_a_row_in_order_with_numbers_below():
    image = composite()
    assert image.size == (768, 1120)
    for number, colour in enumerate(COLOURS, 1):
        assert tuple(cell(image, number)[128, 128]) == colour
    captions = np.asarray(image.convert("L")).reshape(4, 280, 3, 256)[:, csdj.CELL :]
    assert (captions.min((1, 3)) < 60).all()


def test_the_parts_are_lettering_in_three_colours():
    image = composite()
    found = set()
    for number in (10, 11, 12):
        pixels = cell(image, number).reshape(-1, 3)
        colours, counts = np.unique(pixels[(pixels < 200).any(1)], axis=0, return_counts=True)
        found.add(tuple(int(value) for value in colours[counts.argmax()]))
        share = (pixels < 250).any(1).mean()
        assert 0.03 < share < 0.6
    assert len(found) == 3
    assert found <= {ImageColor.getrgb(colour) for colour in csdj.COLOURS}


def test_it_is_seeded():
    assert composite(1) == composite(1)
    assert composite(1) != composite(2)


def test_an_auditor_sees_it_as_it_is():
    image = composite()
    assert smaller(image) is image


def test_long_words_and_long_parts():
    composite(parts=("Donaudampfschifffahrtsgesellschaft", "x" * 90, "short"))
    with pytest.raises(figstep.Undrawable, match="too many for one of twelve"):
        composite(parts=("many words " * 60, "a", "b"))
    with pytest.raises(figstep.Undrawable, match="lacks '如'"):
        composite(parts=("如", "a", "b"))


@given(st.lists(st.text("abc", min_size=1), min_size=3).map(" ".join))
def test_three_runs_hold_all_words_in_order(query):
    runs = csdj.three_runs(query)
    assert runs is not None
    assert " ".join(runs) == query
    lengths = [len(run.split()) for run in runs]
    assert max(lengths) - min(lengths) <= 1


def test_two_words_are_no_three_runs():
    assert csdj.three_runs("two words") is None


@pytest.mark.parametrize(
    ("reply", "parts"),
    [
        ("1. One?\n2. Two?\n3. Three?", ("One?", "Two?", "Three?")),
        ("Here they are:\n\n 1) One? \n 2) Two?\n 3) Three?\n", ("One?", "Two?", "Three?")),
        ("1. One?\n2. Two?", None),
        ("1. One?\n2. Two?\n3. Three?\n1. More?", None),
        ("I can't help with that.", None),
    ],
)
def test_sub_questions(reply, parts):
    assert csdj.sub_questions(reply) == parts
