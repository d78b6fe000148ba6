"""What is replayed beside the mined pairs."""

from __future__ import annotations

from typing import Any

import pytest

from guardtrace_trainer.rows import Pair
from guardtrace_trainer.stages.conflicts import Judged, replayed
from tests.trainer.stages.corpora import annotation, fields

JURY_AND_MODEL: dict[str, tuple[float, float | None]] = {
    "right": (0.0, 0.0),
    "alleged": (0.0, 1.0),
    "overlooked": (1.0, 0.0),
    "harmful": (1.0, 1.0),
    "unread": (0.0, None),
    "right too": (0.0, 0.0),
    "and this": (0.0, 0.0),
}


def pair(name: str, chosen: float) -> Pair:
    made: dict[str, Any] = {**fields(0, 0.0), "id": name}
    return Pair(**made, agreement="2:1", chosen=annotation(chosen), rejected=annotation(0.5))


def names(most: float, seed: int = 0) -> list[str]:
    pairs = [pair(name, jury) for name, (jury, _) in JURY_AND_MODEL.items()]
    judged = {
        name: Judged(id=name, annotation=None if model is None else annotation(model))
        for name, (_, model) in JURY_AND_MODEL.items()
    }
    return [row.id for row in replayed(pairs, judged, most, seed)]


def test_only_what_jury_and_model_call_safe_is_replayed():
    assert names(100) == ["right", "right too", "and this"]


@pytest.mark.parametrize(("most", "count"), [(0, 0), (0.9, 0), (2, 2), (2.5, 2), (3, 3)])
def test_no_more_are_replayed_than_asked_for(most, count):
    assert len(names(most)) == count


def test_the_seed_picks_them():
    assert names(1, seed=1) == names(1, seed=1)
    assert len({names(1, seed)[0] for seed in range(20)}) == 3
