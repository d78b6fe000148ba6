"""The embedded auditor's evaluation sets: apart from training, labelled as the corpus labels, readable as any set."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("sklearn", reason="the extra `train` isn't installed")

from guardtrace_trainer.evaluation.data import BENIGN, UNSAFE, Item, read_qta
from guardtrace_trainer.nano.held_out import HARD, SETS, is_hard, samples, write
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
    assert {name: counts[name] for name in (*SETS, HARD)} == dict.fromkeys((*SETS, HARD), COUNT)
    assert all(item.level == 0 for item in items(folder, "prefixes"))
    assert {item.subset for item in items(folder, "prefixes")} <= SETS.keys()


def test_hard_negatives_are_hard(folder):
    hard = [item for item in items(folder, "held-out") if item.subset == HARD]
    assert {item.kind for item in hard} <= {BENIGN, UNSAFE}
    for sample in samples("text", 200, 1):
        told = any(own for _, own in sample.sentences)
        assert not is_hard(sample) or told or not sample.harm
        assert is_hard(sample) or not told or (sample.harm and sample.answer_strength)


def test_onsets_are_the_first_unsafe_sentence(folder):
    streams = items(folder, "streams")
    assert any(item.onset_sentence for item in streams)
    for item in streams:
        assert item.onset_sentence is None or item.level > 0
        assert item.thinking_sentences


def test_no_line_or_answer_of_training_is_in_them(folder):
    kinds = ("step_benign", "answers_refuse", "answers_neutral", "think_act", "think_hint", "think_safe")
    known = {line for kind in kinds for line in bank(kind) if "{" not in line and len(line) > 25}
    for name in ("held-out", "prefixes", "streams"):
        for item in items(folder, name):
            assert item.answer not in known
            assert not [line for line in known if line in item.thinking], item.id
