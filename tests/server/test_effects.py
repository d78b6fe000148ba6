"""Every setting of guardtrace.yaml changes something, and what isn't built yet is refused at start.

How to add a setting: `tests/effects.py`. A scenario gets a `Site` (`tests/server/sites.py`), says what the servers beside
the proxy answer, and serves it; the `serve` command's own settings are seen from a process of its own.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import urlsplit

import httpx
import pytest
from PIL import Image

from guardtrace_proxy.auditor import breaker
from guardtrace_proxy.auditor.protocol import AuditorSettingsError
from guardtrace_proxy.demo.serving import ServerDidNotStart
from guardtrace_proxy.gate import Decided
from guardtrace_proxy.policy.errors import ConfigError
from guardtrace_proxy.server.config import otlp_is_installed
from guardtrace_proxy.server.settings import ConfigFile
from tests.effects import Effect, check, missing
from tests.server.running import ask
from tests.server.scripted import DONE, SSE_HEAD, by_word, chunk, completion, http, judging
from tests.server.sites import FINE, PICTURE, Commands, Site, Stage, answers, stage
from tests.telemetry.collecting import collector
from tests.waiting import eventually
from tests.wire.response_events import reply

Scenario = Callable[[Site], object]
SLOW_SECONDS = 0.25
HARM = completion("So HARM, one two three four", "fine")


@pytest.fixture(scope="module", name="set_up")
def set_up_once() -> Iterator[Stage]:
    with stage() as set_up:
        yield set_up


@pytest.fixture(scope="module", name="commands")
def commands_once() -> Iterator[Commands]:
    running = Commands()
    yield running
    running.close()


# What a request shows


def status(site: Site, **more: Any) -> int:
    with site.serve() as running:
        return running.raw(ask(**more)).status_code


def status_of(**more: Any) -> Scenario:
    return lambda site: status(site, **more)


def sends_secrets_back(site: Site) -> int:
    """Whether a client's request with encrypted reasoning reaches the upstream."""
    site.stage.upstream = lambda _: [http(200, json.dumps(reply("", "fine").whole()))]
    item = {"type": "reasoning", "summary": [], "encrypted_content": "gAAAAABo" + "Zx9Kq3VbT7mLw2Rc" * 8}
    with site.serve() as running:
        body = {"model": "thinker", "input": [item, {"role": "user", "content": "Please help."}]}
        return running.raw(body, "/responses").status_code


def status_by_key(site: Site) -> int:
    with site.serve() as running:
        return running.raw(ask(), headers={"authorization": "Bearer gt-a"}).status_code


def said(site: Site) -> object:
    """What the client reads of a harmful reply, and why it ended."""
    site.stage.upstream = lambda _: [HARM]
    with site.serve() as running:
        choice = running.raw(ask()).json()["choices"][0]
    return choice["message"]["content"], choice["finish_reason"]


def asked(site: Site) -> list[str]:
    """Which servers were asked."""
    status(site)
    return site.stage.asked


def who_judged(site: Site) -> object:
    """Which servers were asked; or why the auditor isn't started, as the embedded one isn't on vLLM."""
    try:
        return asked(site)
    except (AuditorSettingsError, ServerDidNotStart) as error:
        return str(error)


def upstream_key(site: Site) -> object:
    status(site)
    return site.stage.servers["{upstream}"].requests[-1][1].get("authorization")


def salt_of_the_upstream(site: Site) -> bool:
    """Whether it is the client's."""
    status(site, cache_salt="mine")
    return bool(site.stage.servers["{upstream}"].bodies[-1]["cache_salt"] == "mine")


def headers_with_a_key(site: Site) -> object:
    status(site)
    return {
        name for name, value in site.stage.servers["{upstream}"].requests[-1][1].items() if value in ("a", "Bearer a")
    }


def auditor_key(site: Site) -> object:
    status(site)
    return site.stage.servers["{auditor}"].requests[-1][1].get("authorization")


def asked_of_auditor(name: str) -> Scenario:
    def scenario(site: Site) -> object:
        status(site)
        return site.stage.servers["{auditor}"].bodies[-1][name]

    return scenario


def conversation_as_judged(site: Site) -> int:
    status(site, messages=[{"role": "user", "content": "many words " * 1200}, {"role": "user", "content": "and so"}])
    return max(len(body["messages"][-1]["content"]) for body in site.stage.servers["{auditor}"].bodies)


def phases_as_judged(*deltas: dict[str, Any]) -> Scenario:
    """What the auditor was told in the end is thinking, and what answer."""

    def scenario(site: Site) -> object:
        frames = [*map(chunk, deltas), chunk({}, "stop"), DONE]
        site.stage.upstream = lambda _: [SSE_HEAD, *frames]
        status(site, stream=True)
        told = [body["messages"][-1]["content"] for body in site.stage.servers["{auditor}"].bodies]
        return [text.partition("Current Task Thinking")[2] for text in told if "Please help" in text]

    return scenario


tags_and_field = phases_as_judged(
    {"content": "<think>one</think>two"}, {"reasoning": "three"}, {"content": "<think>four</think>five<t>six</t>seven"}
)
one_tag = phases_as_judged({"content": "one</think>two"})
own_tags = phases_as_judged({"content": "<a>one<b>two</a>three</b>four"})


def asked_of_fallback(name: str) -> Scenario:
    """What the second auditor reads in a request, where the first is out."""

    def scenario(site: Site) -> object:
        site.stage.auditor = lambda body: [http(503, "{}")] if body["model"] == "guard" else judging(by_word)(body)
        status(site)
        return site.stage.servers["{other auditor}"].bodies[-1][name]

    return scenario


def said_without_the_first(site: Site) -> object:
    """Why the reply ended, and who was asked, where the first auditor is out."""
    site.stage.auditor = lambda body: [http(503, "{}")] if body["model"] == "guard" else judging(by_word)(body)
    return status_and_asked(site)


def status_and_asked(site: Site) -> object:
    try:
        with site.serve() as running:
            reason = running.raw(ask()).json()["choices"][0]["finish_reason"]
        return reason, site.stage.asked
    except (AuditorSettingsError, ServerDidNotStart) as error:
        return str(error)


def fallback_key(site: Site) -> object:
    said_without_the_first(site)
    return site.stage.servers["{other auditor}"].requests[-1][1].get("authorization")


def conversation_as_the_fallback_judges_it(site: Site) -> object:
    site.stage.auditor = lambda body: [http(503, "{}")] if body["model"] == "guard" else judging(by_word)(body)
    status(site, messages=[{"role": "user", "content": "many words " * 1200}, {"role": "user", "content": "and so"}])
    return max(len(body["messages"][-1]["content"]) for body in site.stage.servers["{other auditor}"].bodies)


def fallback_keeps_what_it_read(site: Site) -> bool:
    site.stage.auditor = lambda _: [http(503, "{}")]
    with site.serve() as running:
        running.raw(ask())
        [_, fallback] = running.app.service.auditor._replicas.values()  # type: ignore[attr-defined]
        return not fallback.auditor.kept.dropped


def not_asked_any_more(site: Site) -> int:
    """How many of three replies an auditor that is out was asked about."""
    site.stage.auditor = lambda _: [http(503, "{}")]
    with mock.patch.object(breaker, "FIRST_PAUSE_SECONDS", 600), site.serve() as running:
        for _ in range(3):
            running.raw(ask())
    bodies = site.stage.servers["{auditor}"].bodies
    return sum("Please help" in body["messages"][-1]["content"] for body in bodies)


def slowly_judged(site: Site) -> object:
    def slow(request: dict[str, Any]) -> Iterable[bytes]:
        time.sleep(SLOW_SECONDS)
        return judging(by_word)(request)

    site.stage.auditor = slow
    with site.serve() as running:
        return running.raw(ask()).json()["choices"][0]["finish_reason"]


def while_another_is_held(site: Site) -> int:
    """The status of a second request, while the first one's reply waits for its verdict."""
    judged, asked_for = threading.Event(), threading.Event()

    def waiting(request: dict[str, Any]) -> Iterable[bytes]:
        if "Please help" in request["messages"][-1]["content"]:
            asked_for.set()
            judged.wait(30)
        return judging(by_word)(request)

    site.stage.auditor = waiting
    site.stage.upstream = lambda _: [SSE_HEAD, b"".join(chunk({"content": "a " * 40}) for _ in range(20)), DONE]
    with site.serve() as running:
        url = running.url + "/v1/chat/completions"
        first = threading.Thread(target=running.raw, args=(ask(stream=True),))
        first.start()
        assert asked_for.wait(30)
        with httpx.stream("POST", url, json=ask(stream=True), trust_env=False, timeout=30) as second:
            found = second.status_code
        judged.set()
        first.join(30)
    return found


def statuses_of(requests: int) -> Scenario:
    """Of requests one after the other."""

    def scenario(site: Site) -> list[int]:
        with site.serve() as running:
            return [running.raw(ask()).status_code for _ in range(requests)]

    return scenario


def beside_a_busy_core(site: Site) -> int:
    """The status of a request while what another one's audits lead to keeps the event loop from all else."""
    blocked = 0

    def block(_: Decided) -> None:
        nonlocal blocked
        blocked += 1
        time.sleep(0.3)

    frames = [chunk({"content": "a " * 10}) for _ in range(12)]
    site.stage.upstream = lambda _: [SSE_HEAD, *frames, chunk({}, "stop"), DONE]
    with site.serve() as running:
        running.app.service.observer = block
        busy = threading.Thread(target=running.raw, args=(ask(stream=True),))
        busy.start()
        assert eventually(lambda: blocked >= 2)
        url = running.url + "/v1/chat/completions"
        with httpx.stream("POST", url, json=ask(stream=True), trust_env=False, timeout=30) as second:
            found = second.status_code
        busy.join(30)
    return found


def half_a_body(site: Site) -> bytes:
    """What a client is told that doesn't go on, within two seconds."""
    with site.serve() as running:
        address = urlsplit(running.url)
        with socket.create_connection((address.hostname, address.port)) as client:
            client.settimeout(2)
            client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
            try:
                return client.recv(12)
            except TimeoutError:
                return b""


def depths(site: Site) -> set[tuple[str, bool]]:
    """What decided, and whether it took an escalation."""
    status(site)
    return {(decided.verdict.depth, decided.verdict.escalated) for decided in site.decided if decided.verdict}


def keeps_what_it_read(site: Site) -> bool:
    with site.serve() as running:
        running.raw(ask())
        assert site.decided
        auditor = running.app.service.auditor
        return not auditor.kept.dropped  # type: ignore[attr-defined]


def large_reply(site: Site) -> int:
    site.stage.upstream = lambda _: [completion("well", "word " * 1000)]
    return status(site)


def slow_upstream(site: Site) -> int:
    def slow(_: dict[str, Any]) -> Iterable[bytes]:
        time.sleep(SLOW_SECONDS)
        return FINE

    site.stage.upstream = slow
    return status(site)


def gets_comments(site: Site) -> bool:
    """Whether a comment comes while the upstream is silent."""

    def slow(_: dict[str, Any]) -> Iterable[bytes]:
        yield SSE_HEAD
        time.sleep(SLOW_SECONDS)
        yield chunk({"content": "fine"}, "stop") + DONE

    site.stage.upstream = slow
    with site.serve() as running:
        return b": keepalive" in running.raw(ask(stream=True)).content


def with_remote_image(site: Site) -> int:
    parts = [{"type": "image_url", "image_url": {"url": site.stage.names["{images}"] + "x.png"}}]
    return status(site, messages=[{"role": "user", "content": parts}])


def with_slow_image(site: Site) -> int:
    def slow(_: str) -> Iterable[bytes]:
        time.sleep(SLOW_SECONDS)
        return PICTURE

    site.stage.images = slow
    return with_remote_image(site)


def with_image(site: Site) -> int:
    data = io.BytesIO()
    Image.frombytes("RGB", (40, 40), os.urandom(4800)).save(data, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
    parts = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": url}}]
    return status(site, messages=[{"role": "user", "content": parts}])


# What a process of `guardtrace serve` shows; the fixture is put in their place by the test


def addresses(site: Site, commands: Commands) -> list[tuple[str, str]]:
    """Where it answers."""
    urls = {
        (host, port): f"http://{host}:{site.stage.names[port]}"
        for host in ("127.0.0.1", "127.0.0.2")
        for port in ("{port}", "{other port}")
    }
    with commands.serve(site, urls.values()):
        return [place for place, url in urls.items() if answers(url + "/healthz")]


def waits_for_a_reply(site: Site, commands: Commands) -> bool:
    """Whether the process, told to stop, lives on for a reply that doesn't end."""
    is_reached, let_go = threading.Event(), threading.Event()

    def hung(_: dict[str, Any]) -> Iterable[bytes]:
        yield SSE_HEAD
        is_reached.set()
        let_go.wait(30)

    site.stage.upstream = hung
    url = f"http://127.0.0.1:{site.stage.names['{port}']}"
    with commands.serve(site, [url]):
        ask_url = url + "/v1/chat/completions"
        options = {"json": ask(stream=True), "trust_env": False, "timeout": 30}
        threading.Thread(target=httpx.post, args=(ask_url,), kwargs=options, daemon=True).start()
        assert is_reached.wait(30)
        began = time.monotonic()
    let_go.set()
    return time.monotonic() - began >= 2


def refused_once(site: Site) -> int:
    """The status where the upstream closes its first connection without a word."""
    asked: list[int] = []

    def closing(_: dict[str, Any]) -> Iterable[bytes]:
        asked.append(1)
        return FINE if len(asked) > 1 else []

    site.stage.upstream = closing
    return status(site)


def log_lines(site: Site, commands: Commands) -> list[str]:
    site.stage.auditor = lambda _: [http(500, "{}")]
    url = f"http://127.0.0.1:{site.stage.names['{port}']}"
    with commands.serve(site, [url]):
        httpx.post(url + "/v1/chat/completions", json=ask(), trust_env=False, timeout=30)
    return (site.folder / "log.txt").read_text().splitlines()


def log_levels(site: Site, commands: Commands) -> set[str]:
    return {json.loads(line)["level"] for line in log_lines(site, commands)}


def log_is_json(site: Site, commands: Commands) -> set[bool]:
    return {line.startswith("{") for line in log_lines(site, commands)}


def digest(key: str) -> str:
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


# What the audit log shows


def first_line(site: Site) -> dict[str, Any]:
    """Of the log, whatever its name, for a reply that is redacted."""
    site.stage.upstream = lambda _: [completion("Mail ann@example.com the HINT", "fine")]
    status(site)
    for thread in site.stage.stopping:  # the end writes what isn't written yet
        thread.join(30)
    [log] = site.folder.glob("*.jsonl")
    line = json.loads(log.read_text().splitlines()[0])
    log.unlink()
    return {"log": log.name, "evidence": line["evidence"]}


def rotated(site: Site) -> int:
    """How many files 3.5 MiB are in."""
    with site.serve() as running:
        log = running.app.service.audit_log
        assert log is not None
        for _ in range(56):
            log.record(b"x" * 65_535 + b"\n")
        assert eventually(lambda: log.written == 56)
    files = list(site.folder.glob("audit.jsonl*"))
    for file in files:
        file.unlink()
    return len(files)


def lost_on_a_full_disk(site: Site) -> int:
    with site.serve() as running:
        log = running.app.service.audit_log
        assert log is not None
        for _ in range(1000):
            log.record(b"x" * 999 + b"\n")
        return log.lost


def where_metrics_are(site: Site) -> list[str]:
    with site.serve() as running:
        listener = running.app.service.metrics_listener
        assert listener is not None
        port = site.stage.names.get("{port}") if listener.port == site.stage.names["{port}"] else "a free one"
        hosts = [host for host in ("127.0.0.1", "127.0.0.2") if answers(f"http://{host}:{listener.port}/metrics")]
        return [f"{host}:{port}" for host in hosts]


def spans_sent(site: Site) -> bool:
    bodies: list[bytes] = []
    with collector(bodies) as endpoint:
        site.stage.names["{traces}"] = endpoint
        with site.serve() as running:
            running.raw(ask())
            assert eventually(lambda: running.app.service.probed is not None)
        for thread in site.stage.stopping:
            thread.join(30)
    return b"POST /v1/chat/completions" in b"".join(bodies)


AUDIT_LOG = {"audit_log.path": "audit.jsonl"}
NANO = {"auditor.model": "builtin:nano", "auditor.annotate_max_tokens": 8}
IN_PROCESS = {**NANO, "auditor.backend": "transformers", "auditor.base_url": None}
CASCADE = {**IN_PROCESS, "auditor.annotate_max_tokens": 64, "auditor.depth": "cascade"}
FALLBACK = {"auditor.fallback.base_url": "{other auditor}", "auditor.fallback.model": "second"}
NANO_BEHIND = {
    "auditor.fallback.backend": "transformers",
    "auditor.fallback.model": "builtin:nano",
    "auditor.fallback.base_url": None,
    "auditor.fallback.annotate_max_tokens": 8,
}
CUSTOM = {"upstreams.NAME.thinking.style": "custom"}
COMMAND = {"server.port": "{port}"}

EFFECTS = {
    "server.host": Effect(("127.0.0.1", "127.0.0.2"), addresses, beside=COMMAND),
    "server.port": Effect(("{port}", "{other port}"), addresses),
    "server.max_body_bytes": Effect((1024, 65536), status_of(user="x" * 3000)),
    "server.max_stream_bytes": Effect((1024, 65536), large_reply),
    "server.max_total_bytes": Effect((1024, 65536), while_another_is_held),
    "server.max_concurrent": Effect((1, 2), while_another_is_held),
    "server.max_lag_ms": Effect((20, 60_000), beside_a_busy_core),
    "server.client_timeout_ms": Effect((20, 30_000), half_a_body),
    "server.drain_ms": Effect((0, 2000), waits_for_a_reply, beside=COMMAND),
    "server.keepalive_ms": Effect((0, 20), gets_comments),
    "server.passthrough": Effect(([],), status, refused=(["/v1/embeddings"],)),
    "upstreams.NAME.base_url": Effect(("{upstream}", "{other upstream}"), asked),
    "upstreams.NAME.ca_file": Effect(
        (None, "{ca file}"), asked, beside={"upstreams.NAME.base_url": "{tls upstream}"}, refused=("nowhere.pem",)
    ),
    "upstreams.NAME.api_key_env": Effect(("KEY_A", "KEY_B", None), upstream_key, refused=("KEY_C",)),
    "upstreams.NAME.api_key_header": Effect(
        ("authorization", "x-api-key"), headers_with_a_key, beside={"upstreams.NAME.api_key_env": "KEY_A"}
    ),
    "upstreams.NAME.read_timeout_ms": Effect((20, 30_000), slow_upstream),
    "upstreams.NAME.retries": Effect((0, 1), refused_once),
    "upstreams.NAME.thinking.style": Effect(
        ("auto", "field", "inline", "custom"),
        tags_and_field,
        along={"custom": {"upstreams.NAME.thinking.open": "<t>", "upstreams.NAME.thinking.close": "</t>"}},
    ),
    "upstreams.NAME.thinking.starts_open": Effect((False, True), one_tag),
    "upstreams.NAME.thinking.open": Effect(
        ("<a>", "<b>"), own_tags, beside={**CUSTOM, "upstreams.NAME.thinking.close": "</b>"}, refused=(None,)
    ),
    "upstreams.NAME.thinking.close": Effect(
        ("</a>", "</b>"), own_tags, beside={**CUSTOM, "upstreams.NAME.thinking.open": "<a>"}, refused=(None,)
    ),
    "upstreams.NAME.allow_encrypted_reasoning": Effect((False, True), sends_secrets_back),
    "upstreams.NAME.cache_salt": Effect(("client", "tenant"), salt_of_the_upstream),
    "upstreams.NAME.allow_fields": Effect(([], ["x_mine"]), status_of(x_mine=1)),
    "auditor.backend": Effect(
        ("openai", "transformers", "vllm"),
        who_judged,
        beside=NANO,
        along={name: {"auditor.base_url": None} for name in ("transformers", "vllm")},
    ),
    "auditor.base_url": Effect(("{auditor}", "{other auditor}"), asked, refused=(None,)),
    "auditor.ca_file": Effect(
        (None, "{ca file}"), asked, beside={"auditor.base_url": "{tls auditor}"}, refused=("nowhere.pem",)
    ),
    "auditor.api_key_env": Effect(("KEY_A", "KEY_B", None), auditor_key, refused=("KEY_C",)),
    "auditor.model": Effect(("guard", "another"), asked_of_auditor("model")),
    "auditor.depth": Effect(
        ("label", "annotate", "cascade"),
        depths,
        beside={**IN_PROCESS, "auditor.annotate_max_tokens": 64},
        along={"cascade": {"auditor.escalate_at": 1e-9}},
    ),
    "auditor.escalate_at": Effect((1e-9, 0.5), depths, beside=CASCADE, refused=(0.6,)),
    "auditor.timeout_ms": Effect((20, 30_000), slowly_judged),
    "auditor.annotate_timeout_ms": Effect(
        (100, 30_000), slowly_judged, beside={"auditor.timeout_ms": 100}, refused=(99,)
    ),
    "auditor.annotate_max_tokens": Effect((64, 512), asked_of_auditor("max_tokens")),
    "auditor.kv_cache_bytes": Effect((1024, None), keeps_what_it_read, beside=IN_PROCESS),
    "auditor.breaker_failures": Effect((1, 2, None), not_asked_any_more),
    "auditor.fallback": Effect((None, {"base_url": "{other auditor}", "model": "second"}), said_without_the_first),
    "auditor.fallback.backend": Effect(
        ("openai", "transformers", "vllm"),
        said_without_the_first,
        beside=FALLBACK,
        along={"transformers": NANO_BEHIND, "vllm": {**NANO_BEHIND, "auditor.fallback.backend": "vllm"}},
    ),
    "auditor.fallback.base_url": Effect(
        ("{other auditor}", "{other upstream}"), said_without_the_first, beside=FALLBACK, refused=(None,)
    ),
    "auditor.fallback.ca_file": Effect(
        (None, "{ca file}"),
        said_without_the_first,
        beside={**FALLBACK, "auditor.fallback.base_url": "{tls auditor}"},
        refused=("nowhere.pem",),
    ),
    "auditor.fallback.api_key_env": Effect(("KEY_A", "KEY_B", None), fallback_key, beside=FALLBACK, refused=("KEY_C",)),
    "auditor.fallback.model": Effect(("second", "third"), asked_of_fallback("model"), beside=FALLBACK),
    "auditor.fallback.annotate_max_tokens": Effect((64, 512), asked_of_fallback("max_tokens"), beside=FALLBACK),
    "auditor.fallback.max_context": Effect(
        (4096, 8192), conversation_as_the_fallback_judges_it, beside={**FALLBACK, "auditor.max_context": 8192}
    ),
    "auditor.fallback.kv_cache_bytes": Effect((1024, None), fallback_keeps_what_it_read, beside=NANO_BEHIND),
    "auditor.max_context": Effect((4096, 8192), conversation_as_judged),
    "policies_dir": Effect(("policies", "rules"), said),
    "tenants.NAME.keys": Effect(([digest("gt-a")], [digest("gt-b")]), status_by_key),
    "tenants.NAME.policy": Effect(("test", "monitor"), said, refused=("nobody",)),
    "tenants.NAME.upstream": Effect(("default", "other"), asked, refused=("nobody",)),
    "tenants.NAME.limits.concurrent": Effect((1, 2), while_another_is_held),
    "tenants.NAME.limits.requests_per_minute": Effect((1, 2, None), statuses_of(3)),
    "tenants.NAME.limits.tokens_per_minute": Effect((1, 10, None), statuses_of(3)),
    "anonymous_tenant": Effect((None, "default"), status, refused=("nobody",)),
    "images.allow_urls": Effect(([], ["{images}"]), with_remote_image),
    "images.max_count": Effect((0, 8), with_image),
    "images.max_bytes": Effect((1024, 65536), with_image),
    "images.max_pixels": Effect((784, 40_000), with_image),
    "images.timeout_ms": Effect((20, 30_000), with_slow_image, beside={"images.allow_urls": ["{images}"]}),
    "logging.format": Effect(("json", "console"), log_is_json, beside={**COMMAND, "logging.level": "info"}),
    "logging.level": Effect(("debug", "info", "warning", "error"), log_levels, beside=COMMAND),
    "metrics.host": Effect(("127.0.0.1", "127.0.0.2"), where_metrics_are, beside={"metrics.port": 0}),
    "metrics.port": Effect(("{port}", 0), where_metrics_are, refused=(8080,)),
    "tracing.endpoint": Effect((None, "{traces}"), spans_sent, refused=("traces",)),
    "tracing.sample": Effect((0.0, 1.0), spans_sent, beside={"tracing.endpoint": "{traces}"}, refused=(1.5,)),
    "audit_log.path": Effect(("audit.jsonl", "decisions.jsonl"), first_line, refused=(".", "nowhere/audit.jsonl")),
    "audit_log.evidence": Effect(("none", "redacted", "full"), first_line, beside=AUDIT_LOG),
    "audit_log.max_bytes": Effect((1_048_576, 4_194_304), rotated, beside=AUDIT_LOG, refused=(1_000_000,)),
    "audit_log.keep": Effect(
        (1, 3), rotated, beside={**AUDIT_LOG, "audit_log.max_bytes": 1_048_576}, refused=(0, 1001)
    ),
    "audit_log.queue_bytes": Effect(
        (65_536, 131_072), lost_on_a_full_disk, beside={"audit_log.path": "/dev/full"}, refused=(1000,)
    ),
}
OF_A_PROCESS = (addresses, waits_for_a_reply, log_levels, log_is_json)
NEEDS_LOCAL = (
    "auditor.backend",
    "auditor.depth",
    "auditor.escalate_at",
    "auditor.kv_cache_bytes",
    "auditor.fallback.backend",
    "auditor.fallback.kv_cache_bytes",
)


def test_every_setting_and_every_value_of_an_enum_is_in_the_table() -> None:
    assert missing(ConfigFile, EFFECTS) == []


@pytest.mark.parametrize("key", EFFECTS)
def test_every_value_shows(set_up: Stage, commands: Commands, tmp_path: Path, key: str) -> None:
    if key in NEEDS_LOCAL:
        pytest.importorskip("torch", reason="the embedded auditor needs the extra `local`")
    if key.startswith("tracing.") and not otlp_is_installed():
        pytest.skip("the extra `otel` isn't installed")
    if key.endswith(".host") and sys.platform != "linux":
        pytest.skip("only Linux has more than one loopback address ready")
    effect = EFFECTS[key]

    def seen(value: Any) -> object:
        set_up.reset()
        site = Site(set_up, tmp_path, effect.settings(key, value))
        return effect.scenario(site, commands) if effect.scenario in OF_A_PROCESS else effect.scenario(site)

    if len(effect.values) > 1:
        check(effect, seen)
    for value in effect.refused:
        with pytest.raises(ConfigError) as caught:
            Site(set_up, tmp_path, effect.settings(key, value)).load()
        place = key.replace("NAME", "default").removesuffix(".open").removesuffix(".close")
        assert [problem.key for problem in caught.value.problems] == [place]


@pytest.mark.parametrize("key", [key for key, effect in EFFECTS.items() if len(effect.values) == 1])
def test_what_is_not_built_yet_is_refused_as_such(set_up: Stage, tmp_path: Path, key: str) -> None:
    for value in EFFECTS[key].refused:
        with pytest.raises(ConfigError, match="not yet"):
            Site(set_up, tmp_path, EFFECTS[key].settings(key, value)).load()
