"""The proxy itself is stopped, killed, without a disk, under a clock that jumps."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx
import pytest

from tests.cli.serving import GUARDTRACE
from tests.faults.rig import SETTLE_SECONDS, Rig, leaks, rig
from tests.faults.tools import FAKETIME, needs
from tests.waiting import eventually

JUMPING = f"""
import os, sys
if "LD_PRELOAD" not in os.environ:
    file = os.path.join(os.path.dirname(sys.argv[sys.argv.index("--config") + 1]), "clock")
    open(file, "w").write("+0")
    os.environ.update(LD_PRELOAD={str(FAKETIME)!r}, FAKETIME_TIMESTAMP_FILE=file, FAKETIME_NO_CACHE="1")
    os.environ["FAKETIME_DONT_FAKE_MONOTONIC"] = "1"
    os.execv(sys.executable, sys.orig_argv)
{GUARDTRACE}
"""
DAY_SECONDS = 86_400
FULL = f"""
import os
full = os.open("/dev/full", os.O_WRONLY)
os.dup2(full, 1), os.dup2(full, 2)
{GUARDTRACE}
"""
"""Standard output and error are on a disk that is full."""


@pytest.fixture(scope="module")
def running(tmp_path_factory) -> Iterator[Rig]:
    with rig(tmp_path_factory.mktemp("faults")) as built:
        yield built


def test_stopped_for_longer_than_every_timeout(running):
    """As a machine that was suspended, or a core that was taken away: all timers are due at once."""
    with running.asking("slow-harmful") as rest, running.asking("slow") as other:
        running.proxy.process.send_signal(signal.SIGSTOP)
        time.sleep(2.5)
        running.proxy.process.send_signal(signal.SIGCONT)
        harmful, fine = rest(), other()
    assert not leaks(harmful)
    assert not harmful.is_finished
    assert fine.is_fine or fine.is_cut or fine.error
    assert running.settles()
    assert eventually(lambda: running.ask("fine").is_fine, SETTLE_SECONDS)


def test_killed_in_mid_stream(tmp_path):
    with rig(tmp_path) as running, running.asking("endless") as rest:
        running.proxy.process.kill()
        reply = rest()
        assert not leaks(reply)
        assert not reply.is_whole
        assert eventually(lambda: running.upstream.get("/state")["given_up"] >= 1, SETTLE_SECONDS)


@needs(FAKETIME, "libfaketime", "faketime")
def test_a_clock_that_jumps_changes_nothing(tmp_path):
    """A day ahead, then a day behind, in the middle of streams."""
    with rig(tmp_path, JUMPING) as running:
        for days in (1, -1):
            before = clock(running)
            with running.asking("slow") as rest, running.asking("slow-harmful") as other:
                (tmp_path / "clock").write_text(f"{days * DAY_SECONDS:+d}")
                fine, harmful = rest(), other()
            assert eventually(lambda since=before: abs(clock(running) - since) > DAY_SECONDS - 60, SETTLE_SECONDS)
            assert fine.is_fine
            assert harmful.is_cut
            assert not leaks(harmful)
            assert running.ask("hang-in-mid").error == "upstream_error"
        assert running.settles()


def clock(running: Rig) -> float:
    """The proxy's wall clock."""
    answer = httpx.get(running.proxy.url + "/healthz", trust_env=False, timeout=10)
    return parsedate_to_datetime(answer.headers["date"]).timestamp()


def test_a_log_on_a_full_disk_costs_its_lines_and_no_reply(tmp_path):
    with rig(tmp_path, FULL) as running:
        assert all(running.ask("fine").is_fine for _ in range(20))
        assert running.ask("slow-harmful").is_cut
        assert running.ask("hang-in-mid").error == "upstream_error"
        assert running.settles()
        assert running.log() == ""


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
    if mount.returncode:
        pytest.skip(f"a disk of its own takes the right to mount one: {mount.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_disk_that_fills_up_under_the_audit_log_costs_no_reply(tmp_path):
    """And once there is room again, what was decided meanwhile is written."""
    disk = tmp_path / "disk"
    disk.mkdir()
    with (
        small_disk(disk, 65_536),
        rig(tmp_path, settings={"audit_log": {"path": str(disk / "audit.jsonl")}}) as running,
    ):
        with suppress(OSError), (disk / "ballast").open("wb", buffering=0) as ballast:
            while True:
                ballast.write(b"x" * 4096)
        assert all(running.ask("fine").is_fine for _ in range(10))
        assert running.ask("slow-harmful").is_cut
        assert eventually(lambda: "audit log can't be written" in running.log(), SETTLE_SECONDS)
        assert running.shows("audit_log_failing", 1)
        (disk / "ballast").unlink()
        assert eventually(lambda: "audit log is written again" in running.log(), SETTLE_SECONDS)
        assert running.shows("audit_log_failing", 0)
        assert running.ask("fine").is_fine
        assert eventually(lambda: len(decided(disk)) == 13, SETTLE_SECONDS)


def decided(folder: Path) -> set[str]:
    """The requests of which there are decisions."""
    lines = (folder / "audit.jsonl").read_text("utf-8").splitlines()
    return {json.loads(line)["request_id"] for line in lines}


def test_nothing_of_the_suite_depends_on_the_wall_clock():
    """Timers that follow `time.time` end replies early or never when the clock is set."""
    room = Path(__file__).parents[2] / "guardtrace_proxy"
    for place in ("server", "gate", "auditor", "images"):
        for file in (room / place).glob("*.py"):
            source = file.read_text("utf-8")
            assert "time.time(" not in source, file
            assert "datetime.now" not in source, file
