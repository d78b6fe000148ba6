"""Nothing waits for the disk, and nothing is lost without a word."""

from __future__ import annotations

import fcntl
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from guardtrace_proxy.records import audit_log as module
from guardtrace_proxy.records.audit_log import AuditLog
from guardtrace_proxy.records.line_file import LineFile
from tests.records.test_line_file import files_of_at_most
from tests.waiting import eventually

LARGE = 1 << 30


def line(number: int, padding: int = 0) -> bytes:
    return json.dumps({"kind": "decision", "number": number, "padding": "x" * padding}).encode() + b"\n"


def started(path: Path, queue_bytes: int = LARGE) -> AuditLog:
    made = AuditLog(LineFile(path, LARGE, 1), queue_bytes)
    made.start()
    return made


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text().splitlines()]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.02)


def test_what_was_recorded_is_there_after_the_end(tmp_path: Path) -> None:
    log = started(tmp_path / "log")
    for number in range(5000):
        log.record(line(number))
    log.close()
    assert [each["number"] for each in lines_of(tmp_path / "log")] == list(range(5000))
    assert (log.written, log.lost, log.waiting_bytes) == (5000, 0, 0)


def test_a_line_is_in_the_file_soon_not_at_the_end(tmp_path: Path) -> None:
    log = started(tmp_path / "log")
    log.record(line(1))
    assert eventually(lambda: log.written == 1)
    assert lines_of(tmp_path / "log")[0]["number"] == 1
    log.close()


def test_a_short_outage_loses_nothing_and_is_told_once(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "log"
    with capture_logs() as said:
        log = started(path)
        for number in range(20):
            log.record(line(number))
            time.sleep(0.005)
        assert eventually(lambda: log.is_failing)
        path.parent.mkdir()
        assert eventually(lambda: log.written == 20)
        log.close()
    assert [each["number"] for each in lines_of(path)] == list(range(20))
    assert [(each["event"], each["log_level"]) for each in said] == [
        ("audit log can't be written", "error"),
        ("audit log is written again", "warning"),
    ]
    assert said[0]["error"] == "ENOENT"
    assert (log.lost, log.is_failing) == (0, False)


def test_what_a_long_outage_loses_is_counted_told_once_and_said_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "log"
    first = line(0, 200)
    with capture_logs() as said:
        log = started(path, queue_bytes=4 * len(first))
        log.record(first)
        assert eventually(lambda: log.written == 1)
        with files_of_at_most(len(first)):
            for number in range(1, 11):
                log.record(line(number, 200))
                assert log.waiting_bytes <= 4 * len(first)
            assert eventually(lambda: log.is_failing)
        assert eventually(lambda: log.written == 5)
        log.record(line(11))
        log.close()
    *before, gap, after = lines_of(path)
    assert [each["number"] for each in before] == [0, 1, 2, 3, 4]
    assert after["number"] == 11
    assert (gap["kind"], gap["lost"]) == ("gap", 6)
    assert gap["since"] <= gap["until"]
    assert log.lost == 6
    assert [each["event"] for each in said].count("audit log can't be written") == 1
    assert [each["event"] for each in said].count("audit log loses decisions") == 1
    assert [each["lost"] for each in said if each["event"] == "audit log has a gap"] == [6]


def test_a_line_longer_than_the_queue_is_written_where_nothing_waits(tmp_path: Path) -> None:
    log = started(tmp_path / "log", queue_bytes=100)
    log.record(line(1, 200))
    log.close()
    assert [each["number"] for each in lines_of(tmp_path / "log")] == [1]
    assert (log.written, log.lost, log.waiting_bytes) == (1, 0, 0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
def test_the_end_doesnt_wait_for_a_full_disk_and_says_what_it_lost() -> None:
    with capture_logs() as said:
        log = started(Path("/dev/full"))
        for number in range(7):
            log.record(line(number))
        assert eventually(lambda: log.is_failing)
        began = time.monotonic()
        log.close()
        log.record(line(8))
    assert time.monotonic() - began < module.CLOSE_SECONDS / 2
    assert (log.written, log.lost) == (0, 8)
    assert [each["lost"] for each in said if each["event"] == "audit log ends with a gap"] == [7]


def test_recording_takes_no_time_while_the_file_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CLOSE_SECONDS", 0.1)
    goes_on = threading.Event()
    monkeypatch.setattr(LineFile, "append", lambda *_: goes_on.wait(20))
    with capture_logs() as said:
        log = started(tmp_path / "log", queue_bytes=1000)
        began = time.monotonic()
        for number in range(1000):
            log.record(line(number))
        assert time.monotonic() - began < 10  # the file hangs for 20 s
        log.close()
        goes_on.set()
        assert eventually(lambda: not log.waiting_bytes)
    assert (log.lost, log.written) == (1000, 0)
    assert [each["lost"] for each in said if each["event"] == "audit log ends with a gap"] == [1000]


def test_a_lock_that_another_process_keeps_is_a_failure_and_loses_nothing_silently(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CLOSE_SECONDS", 0.1)
    monkeypatch.setattr(module, "HANGING_SECONDS", 0.1)
    path = tmp_path / "log"
    with path.open("a") as other, capture_logs() as said:
        fcntl.flock(other, fcntl.LOCK_EX)
        log = started(path, queue_bytes=65_536)
        for _ in range(1000):
            log.record(b"x" * 99 + b"\n")
        assert eventually(lambda: log.is_failing)
        log.close()
    assert (log.lost, log.written, log.waiting_bytes) == (1000, 0, 0)
    assert [each["lost"] for each in said if each["event"] == "audit log ends with a gap"] == [1000]


def test_a_write_that_hangs_and_goes_on_fails_only_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HANGING_SECONDS", 0.1)
    with (tmp_path / "log").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        log = started(tmp_path / "log")
        log.record(line(1))
        assert eventually(lambda: log.is_failing)
    assert eventually(lambda: log.written == 1)
    assert not log.is_failing
    log.close()
    assert log.lost == 0


def test_an_end_while_the_gap_itself_is_written_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CLOSE_SECONDS", 0.1)
    goes_on, hangs = threading.Event(), threading.Event()
    append = LineFile.append

    def hang_at_the_gap(self: LineFile, lines: bytes) -> None:
        if b'"gap"' in lines:
            hangs.set()
            goes_on.wait(20)
        append(self, lines)

    monkeypatch.setattr(LineFile, "append", hang_at_the_gap)
    with capture_logs() as said:
        log = AuditLog(LineFile(tmp_path / "log", LARGE, 1), 100)
        log.record(line(1))
        log.record(line(2, 200))
        log.start()
        assert hangs.wait(60)
        log.close()
        goes_on.set()
    assert (log.lost, log.written) == (1, 1)
    assert [each["lost"] for each in said if each["event"] == "audit log ends with a gap"] == [1]


def test_lines_go_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    append = LineFile.append

    def noted(self: LineFile, lines: bytes) -> None:
        sizes.append(len(lines))
        time.sleep(0.01)
        append(self, lines)

    monkeypatch.setattr(LineFile, "append", noted)
    log = started(tmp_path / "log")
    for number in range(3000):
        log.record(line(number, 500))
    log.close()
    assert log.written == 3000
    assert 5 < len(sizes) < 100
    assert max(sizes) < module.BATCH_BYTES + 1000


def test_a_file_that_cant_be_rotated_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "log.1").mkdir()
    (tmp_path / "log.1" / "in the way").touch()
    with capture_logs() as said:
        log = AuditLog(LineFile(tmp_path / "log", 10, 1), LARGE)
        log.start()
        for number in range(3):
            log.record(line(number))
            assert eventually(lambda number=number: log.written == number + 1)  # type: ignore[misc]
        log.close()
    assert len(lines_of(tmp_path / "log")) == 3
    assert [each["event"] for each in said] == ["audit log can't be rotated"]
