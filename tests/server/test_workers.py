"""`guardtrace serve --workers N`: several processes on one port; those that die are replaced, and signals reach all."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import yaml

from tests.cli.serving import GUARDTRACE, Serving, run, serving, write_config
from tests.server.scripted import SSE_HEAD, by_word, held_up, judging, model_server, stream
from tests.waiting import eventually

FRAMES = stream("All is quite fine with this one here.", "Four.")
ASK = {"model": "m", "messages": [{"role": "user", "content": "Please help."}], "stream": True}
HUNG_UP_ON = f"""
import os, signal
from guardtrace_proxy.cli import serve
real = serve._serve
def hung_up_on(*arguments):
    os.kill(os.getpid(), signal.SIGHUP)
    return real(*arguments)
serve._serve = hung_up_on
{GUARDTRACE}"""
HINDERED = f"""
import os, sys
from guardtrace_proxy.cli import serve, workers
workers.FIRST_PAUSE_SECONDS = workers.LONGEST_PAUSE_SECONDS = 0.1
hindrance = os.path.join(os.path.dirname(sys.argv[sys.argv.index("--config") + 1]), "hindrance")
real = serve._serve
def hindered(*arguments):
    return serve._did_not_start("the guard is away") if os.path.exists(hindrance) else real(*arguments)
serve._serve = hindered
{GUARDTRACE}"""
"""While there is a file of that name, none starts."""
TOLD_TO_STOP = f"""
import os, signal, time
from guardtrace_proxy.cli import serve
def told_to_stop(*arguments):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(0.5)
    return serve._did_not_start("it was told to stop")
serve._serve = told_to_stop
{GUARDTRACE}"""
LONG_PAUSES = f"""
from guardtrace_proxy.cli import workers
workers.FIRST_PAUSE_SECONDS = 600.0
{GUARDTRACE}"""


@contextmanager
def two_workers(folder: Path, program: str = GUARDTRACE, **more: Any) -> Iterator[Serving]:
    with model_server(lambda _: [SSE_HEAD, *FRAMES]) as upstream, model_server(judging(by_word)) as auditor:
        config = write_config(folder, upstream.url, auditor.url, **more)
        with serving(config, "--workers", "2", program=program) as running:
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


def test_one_that_takes_anothers_place_and_cant_start_is_tried_again_while_the_others_go_on(tmp_path):
    hindrance = tmp_path / "hindrance"
    with two_workers(tmp_path, HINDERED) as running:
        first, second = children(running)
        hindrance.touch()
        os.kill(first, signal.SIGKILL)
        assert eventually(lambda: running.log.read_text().count("The server didn't start") >= 3)
        assert second in children(running)
        assert is_fine(running)
        hindrance.unlink()
        assert eventually(lambda: running.log.read_text().count("auditor probed") == 3)
        assert running.stop() == 0
    assert '"status": 2' in next(
        line for line in reversed(running.log.read_text().splitlines()) if "worker ended, another one takes" in line
    )


def test_one_that_is_told_to_stop_while_it_starts_is_no_failure(tmp_path):
    config = write_config(tmp_path, "http://127.0.0.1:1/v1", "http://127.0.0.1:1/v1")
    assert run("serve", "--config", config, "--port", "0", "--workers", "2", program=TOLD_TO_STOP).returncode == 0


def keys(*valid: str) -> dict[str, Any]:
    hashes = ["sha256:" + hashlib.sha256(key.encode()).hexdigest() for key in valid]
    return {"tenants": {"all": {"policy": "test", "keys": hashes}}, "anonymous_tenant": None}


def statuses(running: Serving, key: str) -> set[int]:
    """Of so many requests that each worker has answered some."""
    headers = {"authorization": f"Bearer {key}"}
    url = running.url + "/v1/chat/completions"
    return {httpx.post(url, json=ASK, headers=headers, trust_env=False, timeout=30).status_code for _ in range(20)}


def killed_and_replaced(running: Serving) -> None:
    said = running.log.read_text().count("auditor probed")
    os.kill(children(running)[0], signal.SIGKILL)
    assert eventually(lambda: running.log.read_text().count("auditor probed") > said)


def test_one_that_takes_anothers_place_has_the_settings_that_are_in_use(tmp_path):
    """Those that were read last and were right: neither those of the start, nor what is broken now."""
    path = tmp_path / "guardtrace.yaml"
    with two_workers(tmp_path, **keys("gt-leaked", "gt-good")) as running:
        assert statuses(running, "gt-leaked") == {200}
        right = yaml.safe_load(path.read_text()) | keys("gt-good")
        path.write_text(yaml.safe_dump(right))
        assert eventually(lambda: running.log.read_text().count("settings reloaded") == 2)
        killed_and_replaced(running)
        assert (statuses(running, "gt-leaked"), statuses(running, "gt-good")) == ({401}, {200})
        path.write_text("tenants: {")
        assert eventually(lambda: running.log.read_text().count("settings not reloaded") == 2)
        killed_and_replaced(running)
        assert (statuses(running, "gt-leaked"), statuses(running, "gt-good")) == ({401}, {200})
        path.write_text(yaml.safe_dump(right | keys("gt-new")))
        assert eventually(lambda: running.log.read_text().count("settings reloaded") == 4)
        assert (statuses(running, "gt-good"), statuses(running, "gt-new")) == ({401}, {200})


def test_sighup_ends_no_worker_that_is_just_starting(tmp_path):
    with two_workers(tmp_path, HUNG_UP_ON) as running:
        assert "worker ended" not in running.log.read_text()


def test_while_one_waits_to_be_replaced_the_others_end_is_seen_and_so_is_sigterm(tmp_path):
    with two_workers(tmp_path, LONG_PAUSES) as running:
        for pid in children(running):
            os.kill(pid, signal.SIGKILL)
        assert eventually(lambda: running.log.read_text().count("worker ended") == 2)
        assert running.stop() == 0


def test_each_reloads_on_sighup(tmp_path):
    with two_workers(tmp_path) as running:
        policy = tmp_path / "policies" / "test.yaml"
        policy.write_text(policy.read_text() + "hold_limit_ms: 5000\n")
        running.process.send_signal(signal.SIGHUP)
        assert eventually(lambda: running.log.read_text().count("settings reloaded") >= 2)
        assert is_fine(running)


def test_told_to_stop_they_take_no_connection_while_what_runs_goes_on(tmp_path):
    end = threading.Event()
    with (
        model_server(held_up(FRAMES, end)) as upstream,
        model_server(judging(by_word)) as auditor,
        serving(write_config(tmp_path, upstream.url, auditor.url), "--workers", "2") as running,
    ):
        url = running.url + "/v1/chat/completions"
        with httpx.stream("POST", url, json=ASK, trust_env=False, timeout=30) as reply:
            running.process.send_signal(signal.SIGTERM)
            assert eventually(lambda: not takes_connections(running), 10)
            assert running.process.poll() is None
            end.set()
            assert reply.read() == b"".join(FRAMES)
        assert running.process.wait(30) == 0


def takes_connections(running: Serving) -> bool:
    address = urlsplit(running.url)
    try:
        with socket.create_connection((address.hostname, address.port), 5):
            return True
    except ConnectionRefusedError:
        return False


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
