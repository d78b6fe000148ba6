"""Gateways of others that guard, or could guard, what streams through them. Each is installed in a venv of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.contenders import NotMeasured, Proxy, Setting
from benchmarks.load import REQUEST
from benchmarks.processes import free_port, running

SLOW_ROUNDS = 1
"""They take a hundred times as long: fewer rounds, and fewer streams for their memory."""
SLOW_STREAMS = 100
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "OPENAI_API_KEY": "unused",
}
"""They listen on the loopback alone, and fetch nothing."""


def _program(setting: Setting, venv: str, name: str) -> Path:
    program = setting.venvs.get(venv, Path(f".venv-bench-{venv}")) / "bin" / name
    if not program.exists():
        raise NotMeasured(f"no {program}: `make peers` installs it")
    return program


@contextmanager
def litellm(setting: Setting) -> Iterator[Proxy]:
    """LiteLLM's proxy with one worker, no guardrail. It moves ``reasoning`` to ``reasoning_content``."""
    program = _program(setting, "litellm", "litellm")
    model = {"model": f"openai/{REQUEST['model']}", "api_base": f"http://127.0.0.1:{setting.upstream}/v1"}
    entry = {"model_name": REQUEST["model"], "litellm_params": {**model, "api_key": "unused"}}
    config = setting.folder / "litellm.yaml"
    config.write_text(json.dumps({"model_list": [entry]}), "utf-8")  # JSON is YAML
    port = free_port()
    command = [str(program), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    with _peer("LiteLLM", command, port, setting, "text") as proxy:
        yield proxy


@contextmanager
def nemo(setting: Setting) -> Iterator[Proxy]:
    """NeMo Guardrails' server without any rail: what its way costs before anything is judged."""
    program = _program(setting, "nemo", "nemoguardrails")
    configs = setting.folder / "configs" / "bench"
    configs.mkdir(parents=True)
    parameters = {"base_url": f"http://127.0.0.1:{setting.upstream}/v1", "api_key": "unused"}
    model = {"type": "main", "engine": "openai", "model": REQUEST["model"], "parameters": parameters}
    (configs / "config.yml").write_text(json.dumps({"models": [model], "streaming": True}), "utf-8")
    port = free_port()
    command = [str(program), "server", "--config", str(configs.parent), "--port", str(port)]
    command += ["--default-config-id", "bench", "--disable-chat-ui"]
    with _peer("NeMo Guardrails", command, port, setting, "answer") as proxy:
        yield proxy


@contextmanager
def _peer(name: str, command: list[str], port: int, setting: Setting, check: str) -> Iterator[Proxy]:
    with running(command, port, setting.folder / "log", OFFLINE) as pid:
        yield Proxy(name, port, pid, check, rounds=SLOW_ROUNDS, most_streams=SLOW_STREAMS)
