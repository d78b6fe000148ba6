"""Whether the auditor's benchmarks run and count rightly; never how fast anything is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the extra `local` isn't installed")

ROOT = Path(__file__).parents[2]


def quick(name: str) -> dict[str, Any]:
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["benchmark"] == name
    assert report["machine"]["shape"] == "7.7M"
    return report


def test_cost_reads_each_token_once_or_all_of_them_again() -> None:
    rows = {(row["method"], row["length"]): row for row in quick("audit_cost")["rows"]}
    for length in (256, 1024):
        once, again = rows["incremental", length], rows["reprefill", length]
        audits = length // 64
        for row in (once, again):
            assert row["reasoning_tokens"] == length
            assert row["tail_tokens"] % audits == 0
            assert 0 < row["last_audit_seconds"] <= row["seconds"]
        assert once["prefilled_tokens"] <= 1.15 * length
        everything = 64 * audits * (audits + 1) / 2
        assert again["prefilled_tokens"] == pytest.approx(everything, rel=0.05)


def test_throughput_has_a_row_for_each_way() -> None:
    rows = quick("audit_throughput")["rows"]
    assert [(row["sessions"], row["method"]) for row in rows] == [
        (sessions, method) for sessions in (1, 4) for method in ("batched", "one by one")
    ]
    assert all(0 < row["p50"] <= row["p99"] and row["audits_per_second"] > 0 for row in rows)


def test_streams_are_counted_beside_a_roofline() -> None:
    report = quick("audit_streams")
    assert [row["streams"] for row in report["rows"]][:1] == [1]
    assert all(0 < row["p50"] <= row["p99"] for row in report["rows"])
    roofline = report["roofline"]
    assert roofline["tokens_per_audit"] > 64
    assert roofline["streams"] > 0
