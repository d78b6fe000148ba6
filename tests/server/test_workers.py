"""`guardtrace serve --workers N`: several processes on one port; those that die are replaced, and signals reach all."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.cli.serving import Serving, run, serving, write_config
from tests.server.scripted import SSE_HEAD, by_word, judging, model_server, stream
from tests.waiting import eventually

FRAMES = stream("All is quite fine with this one here.", "Four.")
ASK = {"model": "m", "messages": [{"role": "user", "content": "Please help."}], "stream": True}


@contextmanager
def two_workers(folder: Path, **more: Any) -> Iterator[Serving]:
    with model_server(lambda _: [SSE_HEAD, *FRAMES]) as upstream, model_server(judging(by_word)) as auditor:
        config = write_config(folder, upstream.url, auditor.url, **more)
        with serving(config, "--workers", "2") as running:
            assert eventually(lambda: running.log.read_text().count("auditor probed") == 2)
            try:
                yield running
            finally:
                if running.process.poll() is None:
                    running.stop()


def children(running: Serving) -> list[int]:
    pid = running.process.pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_fine(running: Serving) -> bool:
    reply = httpx.post(running.url + "/v1/chat/completions", json=ASK, trust_env=False, timeout=30)
    return reply.content == b"".join(FRAMES)


def test_two_serve_one_that_is_killed_is_replaced_and_all_end_together(tmp_path):
    with two_workers(tmp_path) as running:
        first, second = children(running)
        assert all(is_fine(running) for _ in range(10))
        os.kill(first, signal.SIGKILL)
        assert all(is_fine(running) for _ in range(5))  # the other one goes on
        assert eventually(lambda: len(children(running)) == 2)
        assert first not in children(running)
        assert second in children(running)
        assert eventually(lambda: running.log.read_text().count("auditor probed") == 3)
        last = children(running)
        assert running.stop() == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in last)
    log = running.log.read_text()
    assert "worker ended, another one takes its place" in log
    assert {f'"worker": {number}' in log for number in (0, 1)} == {True}


def test_each_reloads_on_sighup(tmp_path):
    with two_workers(tmp_path) as running:
        policy = tmp_path / "policies" / "test.yaml"
        policy.write_text(policy.read_text() + "hold_limit_ms: 5000\n")
        running.process.send_signal(signal.SIGHUP)
        assert eventually(lambda: running.log.read_text().count("settings reloaded") >= 2)
        assert is_fine(running)


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    with two_workers(tmp_path) as running:
        left = children(running)
        running.process.kill()
        assert eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in left))


def test_what_doesnt_start_is_told_once_and_ends_all(tmp_path):
    program = """
from guardtrace_proxy.auditor.openai import OpenAIAuditor
from guardtrace_proxy.auditor.protocol import AuditorSettingsError
async def start(self):
    raise AuditorSettingsError("auditor.model: there is no such folder")
OpenAIAuditor.start = start
from guardtrace_proxy.cli.app import main; main()"""
    config = write_config(tmp_path, "http://127.0.0.1:1/v1", "http://127.0.0.1:1/v1")
    said = run("serve", "--config", config, "--port", "0", "--workers", "2", program=program)
    assert said.returncode == 2
    assert "The server didn't start: auditor.model: there is no such folder" in said.stderr


def test_an_auditor_in_the_process_is_refused(tmp_path):
    config = write_config(
        tmp_path, "http://127.0.0.1:1/v1", "", auditor={"backend": "transformers", "model": "builtin:nano"}
    )
    said = run("serve", "--config", config, "--port", "0", "--workers", "2")
    assert (said.returncode, "auditor.backend: each worker would load the auditor" in said.stderr) == (2, True)
