from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from guardtrace_proxy.auditor import published
from guardtrace_proxy.auditor.published import (
    PromptNotFetched,
    fetch_prompt,
    for_model,
    prompt_path,
    published_prompt,
)
from guardtrace_proxy.cli.auditor import app

COMMIT = "a" * 40
TEXT = "You are a judge of traces.\n“Judgment”: 0\n".encode()
SHA256 = hashlib.sha256(TEXT).hexdigest()


@pytest.fixture
def source() -> Iterator[str]:
    """A server that has the text at one commit, and something endless at another."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = {f"/{COMMIT}/p.txt": TEXT, f"/{'b' * 40}/p.txt": b"x" * (published.MAX_BYTES + 1)}.get(self.path)
            self.send_response(200 if body else 404)
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/{{commit}}/p.txt"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def _data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def test_what_was_fetched_is_written_as_it_is(source: str) -> None:
    fetch_prompt(prompt_path(), commit=COMMIT, sha256=SHA256.upper(), source=source)
    assert prompt_path().read_bytes() == TEXT
    assert published_prompt() == TEXT.decode().strip()
    assert [path.name for path in prompt_path().parent.iterdir()] == [prompt_path().name]


def test_a_wrong_hash_is_refused_and_what_was_there_stays(source: str, tmp_path: Path) -> None:
    out = tmp_path / "prompt.txt"
    with pytest.raises(PromptNotFetched, match=SHA256):
        fetch_prompt(out, commit=COMMIT, sha256="0" * 64, source=source)
    assert not out.exists()
    out.write_text("before")
    with pytest.raises(PromptNotFetched):
        fetch_prompt(out, commit=COMMIT, sha256="0" * 64, source=source)
    assert out.read_text() == "before"


@pytest.mark.parametrize(("commit", "says"), [("c" * 40, "404"), ("b" * 40, "bytes")])
def test_other_answers_are_refused(source: str, tmp_path: Path, commit: str, says: str) -> None:
    with pytest.raises(PromptNotFetched, match=says):
        fetch_prompt(tmp_path / "x", commit=commit, sha256=SHA256, source=source)


def test_offline_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(PromptNotFetched, match="Offline"):
        fetch_prompt(tmp_path / "x", commit=COMMIT, sha256=SHA256, source="http://127.0.0.1:9/{commit}")


@pytest.mark.parametrize(
    ("commit", "sha256", "says"),
    [
        (None, None, "--commit"),
        (COMMIT, None, "--sha256"),
        ("main", SHA256, "40 hex"),
        (COMMIT, "abc", "64"),
        ("../" + "a" * 37, SHA256, "40 hex"),
    ],
)
def test_nothing_is_guessed(tmp_path: Path, commit: str | None, sha256: str | None, says: str) -> None:
    with pytest.raises(PromptNotFetched, match=says):
        fetch_prompt(tmp_path / "x", commit=commit, sha256=sha256, source="http://127.0.0.1:9/{commit}")


def test_the_published_prompt_is_used_for_the_published_weights_alone() -> None:
    assert for_model("other/model", None) == (None, ())
    assert for_model("other/model", "Mine.") == ("Mine.", ())
    prompt, warnings = for_model(published.MODEL, None)
    assert prompt is None
    assert "fetch-prompt" in warnings[0]
    prompt_path().parent.mkdir(parents=True)
    prompt_path().write_bytes(TEXT)
    expected = TEXT.decode().strip()
    assert for_model(published.MODEL, None) == (expected, ())
    assert for_model("/models/GuardTrace-VL-3B/", expected) == (expected, ())
    for depth in ("label", "cascade"):
        prompt, (warning,) = for_model(published.MODEL, None, depth)
        assert prompt == expected
        assert f"depth {depth}: nobody has trained it to judge without an analysis" in warning
        assert for_model("other/model", None, depth) == (None, ())
    prompt, warnings = for_model(published.MODEL, "Mine.")
    assert prompt == "Mine."
    assert "published scores" in warnings[0]
    assert "auditor.system_prompt" not in warnings[0]
    assert "take out the prompt that was given" in warnings[0]


def test_the_command(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "SOURCE", source)
    monkeypatch.setattr(
        published.fetch_prompt, "__kwdefaults__", {**published.fetch_prompt.__kwdefaults__, "source": source}
    )
    run = CliRunner().invoke
    refused = run(app, ["fetch-prompt"])
    assert refused.exit_code == 1
    assert "--commit" in refused.stderr
    done = run(app, ["fetch-prompt", "--commit", COMMIT, "--sha256", SHA256, "--out", str(tmp_path / "p.txt")])
    assert done.exit_code == 0
    assert "copy it there" in done.stdout
    assert (tmp_path / "p.txt").read_bytes() == TEXT
    assert run(app, ["fetch-prompt", "--commit", COMMIT, "--sha256", SHA256]).exit_code == 0
    assert prompt_path().read_bytes() == TEXT
