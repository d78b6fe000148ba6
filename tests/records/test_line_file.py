"""Whole lines, whatever the disk does and whoever else writes."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from guardtrace_proxy.records.line_file import LineFile

LARGE = 1 << 30


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As on a full disk: what would grow beyond is cut short, and then fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_only_its_owner_reads_it_rotated_or_not(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    before = os.umask(0)
    try:
        file = LineFile(path, 10, 2)
        for _ in range(3):
            file.append(b"0123456789\n")
    finally:
        os.umask(before)
    modes = {found.name: stat.S_IMODE(found.stat().st_mode) for found in tmp_path.iterdir()}
    assert modes == {"audit.jsonl": 0o600, "audit.jsonl.1": 0o600, "audit.jsonl.2": 0o600}


def test_the_oldest_go(tmp_path: Path) -> None:
    file = LineFile(tmp_path / "log", 8, 2)
    for number in range(9):
        file.append(b"%03d\n" % number)
    file.close()
    held = {found.name: found.read_text().split() for found in tmp_path.iterdir()}
    assert held == {"log": ["008"], "log.1": ["006", "007"], "log.2": ["004", "005"]}


def test_a_line_larger_than_the_file_may_be_is_still_written(tmp_path: Path) -> None:
    file = LineFile(tmp_path / "log", 8, 1)
    file.append(b"a line of some length\n")
    file.append(b"b\n")
    assert (tmp_path / "log").read_bytes() == b"b\n"
    assert (tmp_path / "log.1").read_bytes() == b"a line of some length\n"


def test_where_fewer_are_to_be_kept_the_others_go_with_the_next_rotation(tmp_path: Path) -> None:
    for name, text in {
        "log": "5",
        "log.1": "4",
        "log.2": "3",
        "log.3": "2",
        "log.4": "1",
        "log.20261130": "ours",
    }.items():
        (tmp_path / name).write_text(text + "\n", "utf-8")
    LineFile(tmp_path / "log", 3, 2).append(b"6\n")
    found = {path.name: path.read_text("utf-8").strip() for path in tmp_path.iterdir()}
    assert found == {"log": "6", "log.1": "5", "log.2": "4", "log.20261130": "ours"}


def test_what_fits_in_part_is_taken_back(tmp_path: Path) -> None:
    file = LineFile(tmp_path / "log", LARGE, 1)
    file.append(b"first\n")
    with files_of_at_most(20), pytest.raises(OSError, match="too large"):
        file.append(b"x" * 100 + b"\n")
    assert (tmp_path / "log").read_bytes() == b"first\n"
    file.append(b"later\n")
    assert (tmp_path / "log").read_bytes() == b"first\nlater\n"


def test_behind_a_torn_line_begins_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b'{"kind":"deci')
    LineFile(path, LARGE, 1).append(b"whole\n")
    assert path.read_bytes() == b'{"kind":"deci\nwhole\n'


def test_a_file_that_was_moved_or_deleted_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "log"
    file = LineFile(path, LARGE, 1)
    file.append(b"1\n")
    path.rename(tmp_path / "by-logrotate")
    file.append(b"2\n")
    path.unlink()
    file.append(b"3\n")
    assert path.read_bytes() == b"3\n"
    assert (tmp_path / "by-logrotate").read_bytes() == b"1\n"


def test_where_the_path_cant_be_looked_at_no_lock_is_kept_and_it_is_opened_anew(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "log"
    path.parent.mkdir()
    file = LineFile(path, LARGE, 1)
    file.append(b"1\n")
    path.parent.rename(tmp_path / "moved")
    path.parent.touch()
    with pytest.raises(NotADirectoryError):
        file.append(b"2\n")
    with (tmp_path / "moved" / "log").open() as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    path.parent.unlink()
    path.parent.mkdir()
    file.append(b"2\n")
    assert path.read_bytes() == b"2\n"


def test_what_cant_be_rotated_grows(tmp_path: Path) -> None:
    path = tmp_path / "log"
    (tmp_path / "log.1").mkdir()
    (tmp_path / "log.1" / "in the way").touch()
    file = LineFile(path, 4, 1)
    file.append(b"123\n")
    file.append(b"456\n")
    assert path.read_bytes() == b"123\n456\n"
    assert isinstance(file.not_rotated, OSError)
    (tmp_path / "log.1" / "in the way").unlink()
    (tmp_path / "log.1").rmdir()
    file.append(b"789\n")
    assert path.read_bytes() == b"789\n"
    assert file.not_rotated is None


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
def test_a_device_is_written_as_it_is() -> None:
    file = LineFile(Path("/dev/full"), 4, 1)
    with pytest.raises(OSError, match="No space"):
        file.append(b"line\n")
    LineFile(Path("/dev/null"), 4, 1).append(b"line\n")
    assert Path("/dev/null").is_char_device()


WRITER = """
import json, sys
from pathlib import Path
from guardtrace_proxy.records.line_file import LineFile
file = LineFile(Path(sys.argv[1]), 20_000, 1000)
for number in range(400):
    file.append(b"".join(json.dumps([sys.argv[2], number, "x" * (number % 97)]).encode() + b"\\n" for _ in range(1)))
"""


def test_several_processes_write_and_rotate_one_file(tmp_path: Path) -> None:
    path = tmp_path / "log"
    command = [sys.executable, "-c", WRITER, str(path)]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    writers = [subprocess.Popen([*command, name], env=environ) for name in "abcd"]
    assert [writer.wait(60) for writer in writers] == [0] * 4
    held = sorted(tmp_path.iterdir(), key=lambda found: -int(found.name.partition(".")[2] or 0))
    lines = [json.loads(line) for found in held for line in found.read_text().splitlines()]
    assert len(held) > 4
    for name in "abcd":
        assert [number for who, number, _ in lines if who == name] == list(range(400))
    assert all(found.stat().st_size <= 20_000 for found in held)
