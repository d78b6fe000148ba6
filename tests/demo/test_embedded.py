"""The demo as a newcomer starts it, on the embedded auditor."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PHOTOS = Path(__file__).parents[3] / "shared" / "data" / "photo-vlm" / "traces.jsonl"

pytest.importorskip("torch", reason="the embedded auditor needs the extra `local`")


def demo(*options: str) -> tuple[int, dict]:
    command = [sys.executable, "-m", "guardtrace_proxy", "demo", "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.stdout.count("\n") == 1, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_four_traces_and_nothing_leaks():
    status, shown = demo("--pace", "120")
    rows = {row["name"]: row for row in shown["traces"]}
    assert {name: row["action"] for name, row in rows.items()} == {
        "benign-arithmetic": "pass",
        "polite-answer-leaking-thoughts": "cut",
        "only-the-image-is-harmful": "cut",
        "harmful-answer": "cut",
    }
    assert shown["leaked_tokens"] == 0
    assert status == 0
    assert rows["benign-arithmetic"]["leaked_tokens"] is None
    assert rows["benign-arithmetic"]["finish_reason"] == "stop"
    for name in list(rows)[1:]:
        assert rows[name]["leaked_tokens"] == 0
        assert rows[name]["finish_reason"] == "content_filter"
        assert rows[name]["failed_audits"] == 0
        assert 0 < rows[name]["annotated"] < rows[name]["audits"]


def test_what_leaks_is_counted_and_told_by_the_exit_status():
    status, shown = demo("--pace", "0", "--policy", "monitor")
    assert status == 1
    assert shown["leaked_tokens"] > 50
    assert all(row["finish_reason"] == "stop" for row in shown["traces"])


@pytest.mark.slow
@pytest.mark.skipif(not PHOTOS.exists(), reason="the recorded traces of photographs aren't at hand")
def test_recorded_traces_with_their_own_tags():
    status, shown = demo("--traces", str(PHOTOS), "--sample", "4", "--pace", "0")
    assert status == 0
    assert len(shown["traces"]) == 4
    assert all(row["leaked_tokens"] is None for row in shown["traces"])
