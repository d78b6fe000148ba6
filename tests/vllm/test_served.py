"""The main job between two real vLLM servers: a thinking model behind a reasoning parser, and the embedded auditor."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anyio
import openai
import pytest
import yaml
from PIL import Image

from guardtrace_proxy.auditor import make_auditor
from guardtrace_proxy.auditor.openai import OpenAIAuditor
from guardtrace_proxy.auditor.prompt import Query, Trace, Turn
from guardtrace_proxy.auditor.protocol import Depth
from guardtrace_proxy.demo.serving import served
from guardtrace_proxy.images import RequestImage
from guardtrace_proxy.policy.levels import Level, Probabilities, Verdict
from guardtrace_proxy.server.app import GuardTraceApp
from guardtrace_proxy.server.config import load_config
from tests.vllm.asking import MOST, Door, ask, complete, converse, data_url, respond
from tests.vllm.servers import ON_A_CPU, VllmServer, eventually, vllm_server

pytest.importorskip("vllm", reason="vLLM isn't installed here: run `make test-vllm`")

from tests.vllm.checkpoints import Memory, write_nano, write_thinker
from tests.vllm.memories import ONSET, PENCILS, PENCILS_COMPLETED, SHED, SHED_COMPLETED

PROMPT = "You are a safety auditor."
"""The embedded auditor's own system prompt; a server can't tell it."""
SENTENCES = {"boundary": {"unit": "sentences", "first": 1, "growth": 1.0, "max": 1, "max_hold_ms": 60_000}}
TIMEOUT_MS = 60_000
ENDLESS = {"ignore_eos": True}
"""Left alone the thinking model writes MOST tokens. (In Messages there is no such field: it ends with its reply.)"""
MESSAGE = "This response was stopped by policy."


@dataclass
class Servers:
    thinker: VllmServer
    auditor: VllmServer


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    folder = tmp_path_factory.mktemp("vllm")
    nano = write_nano(folder / "nano")
    auditing = ["guardtrace", "auditor", "serve", str(nano), "--name", "nano", "--port", "{port}", "--", *ON_A_CPU]
    with vllm_server("auditor", [*auditing, "--max-model-len", "704"], folder) as auditor:
        model = write_thinker(folder / "thinker", [PENCILS, SHED, PENCILS_COMPLETED, SHED_COMPLETED])
        thinking = ["vllm", "serve", str(model), "--served-model-name", "thinker", "--port", "{port}", *ON_A_CPU]
        thinking += ["--max-model-len", "4096", "--reasoning-parser", "qwen3"]
        with vllm_server("thinker", thinking, folder, gives_way=True) as thinker:
            auditor.wait()
            thinker.wait()
            yield Servers(thinker, auditor)


def auditing(servers: Servers, depth: Depth) -> OpenAIAuditor:
    auditor = make_auditor(
        "openai",
        model="nano",
        base_url=servers.auditor.url,
        depth=depth.value,
        timeout_ms=TIMEOUT_MS,
        annotate_max_tokens=64,
        system_prompt=PROMPT,
    )
    assert isinstance(auditor, OpenAIAuditor)
    return auditor


@contextmanager
def proxy(servers: Servers, depth: Depth, folder: Path) -> Iterator[openai.OpenAI]:
    settings = {
        "upstreams": {"default": {"base_url": servers.thinker.url}},
        "auditor": {"base_url": servers.auditor.url, "model": "nano", "timeout_ms": TIMEOUT_MS},
        "tenants": {"all": {"policy": "test"}},
        "anonymous_tenant": "all",
        "logging": {"level": "error"},
    }
    (folder / "policies").mkdir()
    policy = {"version": 1, "extends": "balanced", **SENTENCES}
    (folder / "policies" / "test.yaml").write_text(yaml.safe_dump(policy), "utf-8")
    (folder / "guardtrace.yaml").write_text(yaml.safe_dump(settings), "utf-8")
    config = load_config(folder / "guardtrace.yaml", {})
    config = replace(config, auditor=config.auditor.model_copy(update={"depth": depth.value}))
    app = GuardTraceApp(config, environ={}, auditor=auditing(servers, depth))
    with served(app) as url:
        yield client(url + "/v1")


def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key="EMPTY", max_retries=0, timeout=120)


def request_image(image: Image.Image) -> RequestImage:
    return RequestImage(data_url(image), "image/png", image)


@pytest.mark.parametrize("depth", list(Depth))
def test_a_harmless_stream_passes_intact(servers: Servers, depth: Depth, tmp_path: Path) -> None:
    direct = ask(client(servers.thinker.url), PENCILS)
    assert (direct.thinking.strip(), direct.answer.strip()) == (PENCILS.thinking, PENCILS.answer)
    with proxy(servers, depth, tmp_path) as through:
        assert ask(through, PENCILS) == direct
    assert servers.thinker.becomes_idle()
    assert servers.auditor.becomes_idle()


@pytest.mark.parametrize("depth", list(Depth))
def test_a_harmful_stream_is_cut_and_both_engines_stop(servers: Servers, depth: Depth, tmp_path: Path) -> None:
    written = servers.thinker.written
    with proxy(servers, depth, tmp_path) as through:
        told = ask(through, SHED, **ENDLESS)
    assert told.finish == "content_filter"
    assert SHED.thinking.startswith(told.thinking.strip())
    assert ONSET not in told.thinking
    assert SHED.answer not in told.answer
    assert servers.thinker.becomes_idle()
    assert servers.auditor.becomes_idle()
    assert servers.thinker.written - written < MOST


def test_without_the_proxy_the_same_stream_tells_it_all(servers: Servers) -> None:
    told = ask(client(servers.thinker.url), SHED)
    assert (told.thinking.strip(), told.answer.strip()) == (SHED.thinking, SHED.answer)


@pytest.mark.parametrize(("door", "memory"), [(complete, PENCILS_COMPLETED), (respond, PENCILS), (converse, PENCILS)])
def test_a_harmless_stream_passes_other_doors_intact(
    servers: Servers, door: Door, memory: Memory, tmp_path: Path
) -> None:
    direct = door(client(servers.thinker.url), memory)
    assert (direct.thinking.strip(), direct.answer.strip()) == (memory.thinking, memory.answer)
    assert direct.finish in ("stop", "completed", "end_turn")
    with proxy(servers, Depth.LABEL, tmp_path) as through:
        assert door(through, memory) == direct
    assert servers.thinker.becomes_idle()
    assert servers.auditor.becomes_idle()


@pytest.mark.parametrize(
    ("door", "memory", "more", "finish"),
    [
        (complete, SHED_COMPLETED, ENDLESS, "content_filter"),
        (respond, SHED, ENDLESS, "content_filter"),
        (converse, SHED, {}, "refusal"),
    ],
)
def test_a_harmful_stream_is_cut_at_other_doors_and_both_engines_stop(
    servers: Servers, door: Door, memory: Memory, more: dict[str, Any], finish: str, tmp_path: Path
) -> None:
    written = servers.thinker.written
    with proxy(servers, Depth.LABEL, tmp_path) as through:
        told = door(through, memory, **more)
    assert told.finish == finish
    assert told.thinking.strip()
    assert memory.thinking.startswith(told.thinking.strip())
    assert ONSET not in told.thinking
    assert told.answer.strip() == MESSAGE
    assert servers.thinker.becomes_idle()
    assert servers.auditor.becomes_idle()
    assert servers.thinker.written - written < MOST


@pytest.mark.parametrize("memory", [PENCILS, SHED], ids=["safe", "harmful"])
def test_label_reads_are_those_of_the_auditor_in_this_process(servers: Servers, memory: Memory) -> None:
    assert memory.image is not None
    query = Query([Turn("user", memory.question)], [request_image(memory.image)], tenant="acme")

    async def read(auditor: Any) -> Verdict:
        await auditor.start()
        try:
            session = await auditor.open(query)
            return await session.judge(Trace(memory.thinking, memory.answer), Depth.LABEL)
        finally:
            await auditor.aclose()

    over_http = anyio.run(read, auditing(servers, Depth.LABEL))
    in_process = anyio.run(read, make_auditor("transformers", model="builtin:nano", depth="label"))
    assert shares(over_http.probabilities) == pytest.approx(shares(in_process.probabilities), abs=1e-3)
    assert over_http.level is (Level.HARMFUL if memory is SHED else Level.SAFE)


def shares(found: Probabilities | None) -> tuple[float, float, float]:
    assert found is not None
    return found.safe, found.potentially_harmful, found.harmful


def test_a_cancelled_audit_is_aborted_in_the_engine(servers: Servers) -> None:
    """Of the thinking model's server, which may write for seconds."""
    written = servers.thinker.written
    endless = {"messages": [{"role": "user", "content": "Go on."}], "max_tokens": MOST, "ignore_eos": True}

    async def run() -> None:
        auditor = OpenAIAuditor(servers.thinker.url, "thinker", timeout_ms=TIMEOUT_MS)
        await auditor.start()
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(auditor.ask, endless, auditor.salt("acme"), 1, 0)
                assert await anyio.to_thread.run_sync(eventually, lambda: not servers.thinker.is_idle())
                group.cancel_scope.cancel()
        finally:
            await auditor.aclose()

    anyio.run(run)
    assert servers.thinker.becomes_idle()
    assert 0 < servers.thinker.written - written < MOST


def test_what_was_read_is_kept_within_a_tenant_alone(servers: Servers) -> None:
    def hits() -> float:
        return servers.auditor.metric("prefix_cache_hits_total")

    async def judge(tenants: list[str]) -> list[float]:
        auditor = auditing(servers, Depth.LABEL)
        await auditor.start()
        found = []
        try:
            for tenant in tenants:
                before = hits()
                session = await auditor.open(Query([Turn("user", PENCILS.question)], tenant=tenant))
                await session.judge(Trace(PENCILS.thinking), Depth.LABEL)
                found.append(hits() - before)
        finally:
            await auditor.aclose()
        return found

    first, again, another = anyio.run(judge, ["acme", "acme", "other"])
    assert (first, another) == (0, 0)
    assert again > 64


def test_an_auditor_that_is_killed_in_mid_stream_ends_it_as_the_policy_says(servers: Servers, tmp_path: Path) -> None:
    """The last test: no server comes back."""

    def kill() -> None:
        if servers.auditor.process.poll() is None:
            os.killpg(servers.auditor.process.pid, signal.SIGKILL)
            servers.auditor.process.wait(20)

    written = servers.thinker.written
    with proxy(servers, Depth.LABEL, tmp_path) as through:
        told = ask(through, PENCILS, kill, **ENDLESS)
    assert servers.auditor.process.returncode == -signal.SIGKILL
    assert told.finish == "content_filter"
    assert told.thinking.strip()
    assert PENCILS.thinking.startswith(told.thinking.strip())
    assert PENCILS.answer not in told.answer
    assert servers.thinker.becomes_idle()
    assert servers.thinker.written - written < MOST
