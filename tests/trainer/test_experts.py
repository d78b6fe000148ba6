"""Scripted experts: three votes on each text of each item."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="the extra `train` isn't installed")

from guardtrace_trainer.annotation.review import decide
from guardtrace_trainer.nano import experts
from guardtrace_trainer.rows import write_rows
from tests.trainer.corpora import vote


def test_votes_on_an_older_text_are_given_anew(tmp_path):
    def decided(thinking: str) -> int:
        items = [vote(n, 0, 0.5, 1, request_id=f"nano-{n:05}", thinking=thinking, split="train") for n in range(3)]
        write_rows(tmp_path / "experts.jsonl", items)
        experts.vote(tmp_path, 0)
        return int(decide(tmp_path)[1].counts["decided"])

    assert decided("The old text.") == decided("The new text.") == 3
    before = (tmp_path / "reviews.jsonl").read_bytes()
    assert decided("The new text.") == 3
    assert (tmp_path / "reviews.jsonl").read_bytes() == before
