"""Tenants and policies are read again while the server runs: all or nothing, and what runs keeps what it began with."""

from __future__ import annotations

import hashlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from guardtrace_proxy.server.reload import POLL_SECONDS
from tests.cli.serving import GUARDTRACE, Serving, serving
from tests.server.scripted import SSE_HEAD, Server, by_word, chunk, judging, model_server, stream
from tests.waiting import eventually

HARMFUL = [SSE_HEAD, *stream("All of this is quite fine but then comes HARM in full.", "No.")]
ASK = {"model": "m", "messages": [{"role": "user", "content": "Please help."}], "stream": True}

NO_FILE_FREE = f"""
from pathlib import Path
real, looks = Path.glob, 0
def glob(self, pattern):
    global looks
    looks += 1
    if 3 <= looks <= 5:
        raise OSError(24, "Too many open files")
    return real(self, pattern)
Path.glob = glob
{GUARDTRACE}"""

BUSY = f"""
from pathlib import Path
real = Path.read_bytes
def read_bytes(self):
    if self.suffix == ".yaml" and (self.parent / "busy").exists():
        raise OSError(24, "Too many open files")
    return real(self)
Path.read_bytes = read_bytes
{GUARDTRACE}"""


def hashed(key: str) -> str:
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


class Files:
    """The settings and one policy; a file is written anew as an editor does it."""

    def __init__(self, folder: Path, upstream: Server, auditor: Server) -> None:
        self.path = folder / "guardtrace.yaml"
        self.policy_path = folder / "policies" / "test.yaml"
        self.policy_path.parent.mkdir()
        self.settings: dict[str, Any] = {
            "upstreams": {"default": {"base_url": upstream.url}},
            "auditor": {"base_url": auditor.url, "model": "guard", "depth": "annotate", "timeout_ms": 20_000},
            "tenants": {"all": {"policy": "test"}, "acme": {"policy": "test", "keys": [hashed("gt-old")]}},
            "anonymous_tenant": "all",
        }
        self.write_policy("Stopped.")
        self.write()

    def write(self, **more: Any) -> None:
        self.path.write_text(yaml.safe_dump({**self.settings, **more}), "utf-8")

    def write_policy(self, message: str, **more: Any) -> None:
        boundary = {"first": 4, "max": 4, "growth": 1.0}
        policy = {"version": 1, "extends": "balanced", "boundary": boundary, "messages": {"cut": message}, **more}
        self.policy_path.write_text(yaml.safe_dump(policy), "utf-8")


def post(running: Serving, key: str = "none") -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"}
    return httpx.post(running.url + "/v1/chat/completions", json=ASK, headers=headers, trust_env=False, timeout=30)


def says(running: Serving, text: str) -> Callable[[], bool]:
    return lambda: text in running.log.read_text()


@pytest.fixture
def site(tmp_path) -> Iterator[tuple[Serving, Files]]:
    with model_server(lambda _: HARMFUL) as upstream, model_server(judging(by_word)) as auditor:
        files = Files(tmp_path, upstream, auditor)
        with serving(files.path) as running:
            yield running, files


def test_a_policy_counts_once_its_file_has_changed(site):
    running, files = site
    assert "Stopped." in post(running).text
    files.write_policy("Stopped anew.")
    assert eventually(lambda: "Stopped anew." in post(running).text)
    assert says(running, "settings reloaded")()


def test_keys_change_on_sighup_at_once(site):
    running, files = site
    assert (post(running, "gt-old").status_code, post(running, "gt-new").status_code) == (200, 401)
    files.settings["tenants"]["acme"]["keys"] = [hashed("gt-new")]
    files.write()
    running.process.send_signal(signal.SIGHUP)
    assert eventually(says(running, "settings reloaded"))
    assert (post(running, "gt-old").status_code, post(running, "gt-new").status_code) == (401, 200)


def test_a_bad_file_keeps_all_of_the_old_set_and_says_so_and_a_mended_one_counts(site):
    running, files = site
    files.settings["tenants"]["acme"]["keys"] = [hashed("gt-new")]
    files.write()
    files.write_policy("Stopped anew.", anwser={})
    assert eventually(says(running, "settings not reloaded, the old ones stay"))
    assert 'anwser: unknown key; did you mean \\"answer\\"?' in running.log.read_text()
    assert "Stopped." in post(running, "gt-old").text
    assert post(running, "gt-new").status_code == 401
    files.write_policy("Stopped anew.")
    assert eventually(says(running, "settings reloaded"))
    assert "Stopped anew." in post(running, "gt-new").text


def test_no_half_empty_or_absent_file_changes_anything(site):
    running, files = site
    for text in ("tenants: {", "", "- 1\n", "server: {port: 1}\n", "\x00", None):
        said = running.log.read_text().count("not reloaded")
        files.path.unlink() if text is None else files.path.write_text(text)
        running.process.send_signal(signal.SIGHUP)
        assert eventually(lambda said=said: running.log.read_text().count("not reloaded") > said)
        assert "Stopped." in post(running, "gt-old").text


def test_what_takes_a_restart_is_named_and_nothing_of_that_file_counts(site):
    running, files = site
    files.settings["tenants"]["acme"]["keys"] = [hashed("gt-new")]
    files.write(server={"max_body_bytes": 2048}, images={"max_count": 1})
    assert eventually(says(running, "changing images, server takes a restart"))
    assert (post(running, "gt-old").status_code, post(running, "gt-new").status_code) == (200, 401)


def test_a_running_stream_keeps_the_policy_it_began_with(tmp_path):
    going_on = threading.Event()

    def slowly(_: dict[str, Any]) -> Iterator[bytes]:
        yield SSE_HEAD
        yield chunk({"role": "assistant", "content": "one two three four five six "})
        going_on.wait(60)
        yield from HARMFUL[1:]

    with model_server(slowly) as upstream, model_server(judging(by_word)) as auditor:
        files = Files(tmp_path, upstream, auditor)
        with serving(files.path) as running:
            url = running.url + "/v1/chat/completions"
            with httpx.stream("POST", url, json=ASK, trust_env=False, timeout=60) as first:
                lines = first.iter_lines()
                assert "one two three" in next(lines)
                files.write_policy("Stopped anew.")
                assert eventually(says(running, "settings reloaded"))
                going_on.set()
                rest = "".join(lines)
            assert "Stopped." in rest
            assert "Stopped anew." in post(running).text


def test_a_mount_that_is_swapped_is_seen(tmp_path):
    """As Kubernetes does it: what the link leads to is another file then."""
    with model_server(lambda _: HARMFUL) as upstream, model_server(judging(by_word)) as auditor:
        files = Files(tmp_path, upstream, auditor)
        real, link = tmp_path / "data-1", files.policy_path
        link.rename(real)
        link.symlink_to(real)
        with serving(files.path) as running:
            assert "Stopped." in post(running).text
            other = tmp_path / "data-2"
            other.write_text(real.read_text().replace("Stopped.", "Stopped anew."))
            (tmp_path / "policies" / "..new").symlink_to(other)
            (tmp_path / "policies" / "..new").rename(link)
            assert eventually(lambda: "Stopped anew." in post(running).text)


def test_looks_that_fail_are_told_once_and_end_neither_the_watch_nor_with_sighup_the_process(tmp_path):
    with model_server(lambda _: HARMFUL) as upstream, model_server(judging(by_word)) as auditor:
        files = Files(tmp_path, upstream, auditor)
        with serving(files.path, program=NO_FILE_FREE) as running:
            assert eventually(says(running, "settings files can't be looked at, the next look may"))
            running.process.send_signal(signal.SIGHUP)
            assert eventually(says(running, "settings reloaded"))
            files.write_policy("Stopped anew.")
            assert eventually(lambda: "Stopped anew." in post(running).text)
            assert running.log.read_text().count("can't be looked at") == 1
            assert "Too many open files" in running.log.read_text()
            assert running.stop() == 0


def test_a_file_that_cant_be_read_for_a_moment_is_read_again_and_that_is_told_once(tmp_path):
    with model_server(lambda _: HARMFUL) as upstream, model_server(judging(by_word)) as auditor:
        files = Files(tmp_path, upstream, auditor)
        busy = files.policy_path.parent / "busy"
        with serving(files.path, program=BUSY) as running:
            busy.touch()
            files.write_policy("Stopped anew.")
            assert eventually(says(running, "settings not reloaded, the old ones stay"))
            time.sleep(2.5 * POLL_SECONDS)
            busy.unlink()
            assert eventually(lambda: "Stopped anew." in post(running).text)
            assert running.log.read_text().count("settings not reloaded") == 1
            assert "Too many open files" in running.log.read_text()


def test_a_change_of_who_may_read_a_file_is_seen(site):
    running, files = site
    files.policy_path.chmod(0o600)
    assert eventually(says(running, "settings reloaded"))


def test_what_hasnt_changed_isnt_read_again(site):
    running, _ = site
    time.sleep(2.5 * POLL_SECONDS)
    assert "reloaded" not in running.log.read_text()
