from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from guardtrace_proxy.cli.app import app

FAKE = '#!/bin/sh\nprintf \'%s\\n\' "$@" > "$(dirname "$0")/called"\n'


def test_it_prints_a_command_that_audits_can_use_and_own_options_win() -> None:
    result = CliRunner().invoke(app, ["auditor", "serve", "a/guard", "--print", "--", "--max-model-len", "4096"])
    assert result.exit_code == 0, result.output
    words = shlex.split(result.output)
    assert words[:5] == ["vllm", "serve", "a/guard", "--host", "127.0.0.1"]
    assert "--enable-prefix-caching" in words
    assert "--enable-prompt-tokens-details" in words
    assert words[words.index("--scheduling-policy") + 1] == "priority"
    assert words[words.index("--load-format") + 1] == "safetensors"
    assert words[words.index("--served-model-name") + 1] == "a/guard"
    assert words[-2:] == ["--max-model-len", "4096"]
    assert not any("reasoning" in word for word in words)


def test_it_listens_where_it_is_told() -> None:
    result = CliRunner().invoke(app, ["auditor", "serve", "a/guard", "--print", "--host", "10.0.0.2"])
    assert result.exit_code == 0, result.output
    words = shlex.split(result.output)
    assert words[words.index("--host") + 1] == "10.0.0.2"
    assert words.count("--host") == 1


def test_without_vllm_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    result = CliRunner().invoke(app, ["auditor", "serve", "a/guard"])
    assert result.exit_code == 1
    assert "pip install vllm" in result.output


@pytest.mark.skipif(sys.platform == "win32", reason="vLLM isn't for Windows")
def test_it_becomes_vllm(tmp_path: Path) -> None:
    import subprocess

    (tmp_path / "vllm").write_text(FAKE, "utf-8")
    (tmp_path / "vllm").chmod(0o755)
    code = (
        f"import sys; sys.executable = {str(tmp_path / 'python')!r}; from guardtrace_proxy.cli.app import main; main()"
    )
    subprocess.run(
        [sys.executable, "-c", code, "auditor", "serve", "a/guard", "--port", "9009"], check=True, timeout=60
    )
    called = (tmp_path / "called").read_text("utf-8").splitlines()
    assert called[:6] == ["serve", "a/guard", "--host", "127.0.0.1", "--port", "9009"]
