"""Starts the client scripts, each in its own environment (``make clients``), and talks to them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "tests" / "clients"
NODE_MODULES = SCRIPTS / "node" / "node_modules"
ANSWER_SECONDS = 60.0


@dataclass(frozen=True)
class Client:
    """A row of docs/clients.md.

    ``package`` is the module or npm package that must be there, ``own`` the packages whose exceptions the client raises,
    ``on_filter`` what it raises at a content filter, if it does; ``dialect`` is the API that it speaks. ``finish`` is what it
    calls a benign end, where it has words of its own, and ``tells_finish`` the cases in which it says how a reply ended.
    """

    name: str
    home: str
    package: str
    script: str
    own: tuple[str, ...]
    on_filter: str | None = None
    reads_reasoning: bool = True
    dialect: str = "chat"
    finish: str | None = None
    tells_finish: tuple[str, ...] = ("stream", "whole")


CREATE, HELPER = ("openai_chat.py sync", "openai_chat.py helper")
FILTERED = "openai.ContentFilterFinishReasonError"
CLIENTS = [
    Client("openai-python {version}, `create`", "clients", "openai", CREATE, ("openai",)),
    Client("openai-python {version}, `AsyncOpenAI`", "clients", "openai", "openai_chat.py async", ("openai",)),
    Client("openai-python {version}, `stream()` and `parse()`", "clients", "openai", HELPER, ("openai",), FILTERED),
    Client("openai-python {version}, `create`", "litellm", "openai", CREATE, ("openai",)),
    Client(
        "LangChain `ChatOpenAI` {version}",
        "clients",
        "langchain_openai",
        "langchain_chat.py sync",
        ("openai", "langchain_openai"),
        reads_reasoning=False,
    ),
    Client(
        "LangChain `ChatOpenAI` {version}, asynchronous",
        "clients",
        "langchain_openai",
        "langchain_chat.py async",
        ("openai", "langchain_openai"),
        reads_reasoning=False,
    ),
    Client("LiteLLM SDK {version}, `completion`", "litellm", "litellm", "litellm_chat.py sync", ("litellm",)),
    Client("LiteLLM SDK {version}, `acompletion`", "litellm", "litellm", "litellm_chat.py async", ("litellm",)),
    Client("Pydantic AI {version}", "clients", "pydantic_ai", "pydantic_agent.py chat", ("pydantic_ai",)),
    Client(
        "Pydantic AI {version}, `OpenAIResponsesModel`",
        "clients",
        "pydantic_ai",
        "pydantic_agent.py responses",
        ("pydantic_ai",),
        reads_reasoning=False,
        dialect="responses",
        finish="stop",
    ),
    Client(
        "Pydantic AI {version}, `AnthropicModel`",
        "clients",
        "pydantic_ai",
        "pydantic_agent.py messages",
        ("pydantic_ai",),
        dialect="messages",
        finish="stop",
    ),
    *[
        Client(
            f"anthropic-python {{version}}, {what}",
            "clients",
            "anthropic",
            f"anthropic_messages.py {how}",
            ("anthropic",),
            dialect="messages",
        )
        for how, what in [("sync", "`create`"), ("async", "`AsyncAnthropic`"), ("helper", "`stream()`")]
    ],
    Client(
        "OpenAI Agents SDK {version}, `OpenAIChatCompletionsModel`",
        "agents",
        "agents",
        "agents_sdk.py chat",
        ("agents", "openai"),
        tells_finish=(),
    ),
    Client(
        "OpenAI Agents SDK {version}, `OpenAIResponsesModel`",
        "agents",
        "agents",
        "agents_sdk.py responses",
        ("agents", "openai"),
        "agents.ModelBehaviorError",
        dialect="responses",
        tells_finish=("stream",),
    ),
    Client("openai-node {version}", "node", "openai", "openai_chat.mjs", ("openai",)),
    Client(
        "openai-python {version}, `responses.create`",
        "clients",
        "openai",
        "openai_responses.py sync",
        ("openai",),
        dialect="responses",
    ),
    Client(
        "openai-python {version}, `responses.stream` and `.parse`",
        "clients",
        "openai",
        "openai_responses.py helper",
        ("openai",),
        dialect="responses",
    ),
    Client(
        "openai-node {version}, `responses.create`",
        "node",
        "openai",
        "openai_responses.mjs",
        ("openai",),
        dialect="responses",
    ),
    Client(
        "openai-python {version}, `completions.create`",
        "clients",
        "openai",
        "openai_completions.py",
        ("openai",),
        dialect="completions",
    ),
    Client(
        "anthropic-node {version}, `create`",
        "node",
        "@anthropic-ai/sdk",
        "anthropic_messages.mjs create",
        ("@anthropic-ai/sdk",),
        dialect="messages",
    ),
    Client(
        "anthropic-node {version}, `stream()`",
        "node",
        "@anthropic-ai/sdk",
        "anthropic_messages.mjs helper",
        ("@anthropic-ai/sdk",),
        dialect="messages",
    ),
    Client("Vercel AI SDK {version}", "node", "ai", "ai_sdk.mjs", ("ai",)),
    Client("`curl -N`", "system", "curl", "curl.py chat", ("error",)),
    Client("`curl -N`, messages", "system", "curl", "curl.py messages", ("error",), dialect="messages"),
]


def lacking(reason: str) -> NoReturn:
    """Skip the test; in CI, where everything was installed, fail."""
    if os.environ.get("GUARDTRACE_CLIENTS") == "required":
        pytest.fail(f"GUARDTRACE_CLIENTS=required, but {reason}", pytrace=False)
    pytest.skip(reason)


def node_program() -> str | None:
    """The one that came with the clients, for machines whose own is older than they want, else the machine's."""
    bundled = NODE_MODULES / ".bin" / "node"
    return str(bundled) if bundled.exists() else shutil.which("node")


def command(client: Client) -> list[str]:
    """How the client's script is started."""
    script, *arguments = client.script.split()
    if client.home == "node":
        node = node_program()
        if node is None:
            lacking("node isn't installed")
        if not (NODE_MODULES / client.package).is_dir():
            lacking(f"the npm package {client.package} isn't installed (make clients)")
        return [node, str(SCRIPTS / "node" / script), *arguments]
    program = sys.executable
    if client.home == "system":
        if shutil.which(client.package) is None:
            lacking(f"{client.package} isn't installed")
    else:
        environment = ROOT / f".venv-{client.home}"
        if not any(environment.glob(f"lib/python*/site-packages/{client.package}")):
            lacking(f"{client.package} isn't installed in {environment.name} (make clients)")
        program = str(environment / "bin" / "python")
    return [program, str(SCRIPTS / "python" / script), *arguments]


class Started:
    """A client's running script: its imports are paid for once."""

    def __init__(self, client: Client) -> None:
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "SYSTEMROOT") if name in os.environ}
        # LiteLLM would fetch its table of prices at import.
        settings = {"PYTHONUTF8": "1", "NO_PROXY": "127.0.0.1", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        self.row = client
        self.process = subprocess.Popen(
            command(client), env=kept | settings, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.name = client.name.format(version=self.read()["version"])

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        alarm = threading.Timer(ANSWER_SECONDS, self.process.kill)
        alarm.start()
        try:
            line = self.process.stdout.readline()
        finally:
            alarm.cancel()
        assert line, f"{self.row.script} ended or gave no answer in {ANSWER_SECONDS:.0f} s"
        return json.loads(line)

    def ask(self, case: str, url: str) -> dict[str, Any]:
        """What the client saw (``Seen`` of the scripts). ``case``: stream, whole or leave."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"case": case, "url": url}) + "\n")
        self.process.stdin.flush()
        return self.read()

    def close(self) -> None:
        with self.process:
            assert self.process.stdin is not None
            self.process.stdin.close()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
