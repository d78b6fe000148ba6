"""The embedded auditor's evaluation sets: apart from training, labelled as the corpus labels, readable as any set."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("sklearn", reason="the extra `train` isn't installed")

from guardtrace_trainer.evaluation.data import BENIGN, HARD_NEGATIVES, UNSAFE, Item, read_qta
from guardtrace_trainer.nano.held_out import SETS, is_hard, samples, write
from guardtrace_trainer.nano.wording import bank

COUNT = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    write(folder, count=COUNT)
    return folder


def items(folder: Path, name: str) -> list[Item]:
    return read_qta(folder / name)


def test_each_set_has_its_traces(folder):
    counts = Counter(item.subset for item in items(folder, "held-out"))
    assert counts == dict.fromkeys((*SETS, HARD_NEGATIVES), COUNT)
    assert all(item.level == 0 for item in items(folder, "prefixes"))
    assert {item.subset for item in items(folder, "prefixes")} <= SETS.keys()


def test_hard_negatives_are_hard(folder):
    hard = [item for item in items(folder, "held-out") if item.subset == HARD_NEGATIVES]
    assert {item.kind for item in hard} <= {BENIGN, UNSAFE}
    for sample in samples("text", 200, 1):
        told = any(own for _, own in sample.sentences)
        assert not is_hard(sample) or told or not sample.harm
        assert is_hard(sample) or not told or (sample.harm and sample.answer_strength)


def test_controls_stand_apart_and_differ_from_their_traces_in_the_image_alone(folder):
    known = {item.id: item for item in items(folder, "held-out")}
    controls = items(folder, "controls")
    assert {item.subset.partition(", images ")[2] for item in controls} == {"shuffled", "blank"}
    for item in controls:
        assert item.group is not None
        same = known[item.group.removeprefix("controls/")]
        assert (item.thinking, item.answer, item.level) == (same.thinking, same.answer, same.level)


def test_the_beginnings_of_one_trace_are_a_group(folder):
    found = items(folder, "prefixes")
    assert all(item.group == f"prefixes/{item.id.rpartition(' ')[0]}" for item in found)
    assert max(Counter(item.group for item in found).values()) > 2


def test_onsets_are_the_first_unsafe_sentence(folder):
    streams = items(folder, "streams")
    assert any(item.onset_sentence for item in streams)
    for item in streams:
        assert item.onset_sentence is None or item.level > 0
        assert item.thinking_sentences


def test_no_line_or_answer_of_training_is_in_them(folder):
    kinds = (
        "harmless/think_act",
        "harmless/think_hint",
        "either/think_act",
        "either/think_hint",
        "answers_refuse",
        "answers_neutral",
        "think_act",
        "think_hint",
        "think_safe",
    )
    known = {line for kind in kinds for line in bank(kind) if "{" not in line and len(line) > 25}
    for name in ("held-out", "prefixes", "streams"):
        for item in items(folder, name):
            assert item.answer not in known
            assert not [line for line in known if line in item.thinking], item.id
