"""What a proxy costs, beside its peers, in one interleaved run: ``python -m benchmarks.proxies [--json] [--quick]``.

CPU time a token, added delay at a pace, delay of a release behind its audit, memory of held streams. What is measured
and how: ``benchmarks/README.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from benchmarks.contenders import CHUNK_TOKENS, NotMeasured, Proxy, Setting, forwarder, guardtrace, nginx
from benchmarks.machine import facts
from benchmarks.peers import litellm, nemo
from benchmarks.processes import ROOT, ProcessFailed, pin, pss_bytes
from benchmarks.proxies_table import print_table, summary
from benchmarks.proxy_cpu import Bench, Load, WrongReply, get, shared_servers

LOAD_SECONDS = 200.0
NO_AUDITS = 8192
"""Tokens in a chunk: a stream is then judged twice, where its thinking ends and at its end."""


@dataclass(frozen=True)
class Plan:
    """``paced`` streams run at 50 tokens a second each; memory is measured with ``held`` slow ones."""

    steps: Load
    paced: Sequence[int]
    paced_tokens: int
    held: int
    held_rate: float
    rounds: int


FULL = Plan(Load(32, 500, 5, "steps"), (8, 64), 250, 1000, 2.0, 5)
QUICK = Plan(Load(4, 100, 1, "steps"), (2, 4), 50, 10, 50.0, 1)
RATE = 50.0
HELD_TOKENS = 60
"""Less than a chunk of thinking: none of it leaves before the answer begins."""


@dataclass
class Figures:
    """Of one contender. ``cpu``: µs per token by round; ``delays``: ms by number of streams, each stream by token;
    ``auditor_ms``: what the auditor itself took for an audit."""

    name: str
    cpu: list[float] = field(default_factory=list)
    delays: dict[int, list[list[float]]] = field(default_factory=dict)
    audits: int = 0
    auditor_ms: float = 0.0
    held_bytes: float | None = None
    skipped: str | None = None


def direct_proxy(bench: Bench) -> Proxy:
    """No proxy at all."""
    return Proxy("direct", bench.upstream, 0)


CONTENDERS: dict[str, Callable[[Setting], Any]] = {
    "nginx": nginx,
    "forwarder": forwarder,
    "guardtrace monitor": guardtrace("monitor"),
    "guardtrace hold": guardtrace("hold"),
    "guardtrace hold, no audits": guardtrace("hold", "guardtrace hold, no audits", NO_AUDITS),
    "NeMo Guardrails": nemo,
    "LiteLLM": litellm,
}


def measure(plan: Plan, setting: Callable[[Path, Bench], Setting]) -> list[Figures]:
    """All contenders' figures, their rounds interleaved. Raises WrongReply or ProcessFailed."""
    found = {name: Figures(name) for name in ("direct", *CONTENDERS)}
    cores = sorted(os.sched_getaffinity(0))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="proxies-")))
        folder.chmod(0o755)  # nginx's worker is another user where its master is root
        stack.enter_context(_on_cores(cores[1:] or cores))
        bench = stack.enter_context(shared_servers(plan.steps, folder))
        proxies = [direct_proxy(bench)]
        for position, (name, start) in enumerate(CONTENDERS.items()):
            own = folder / str(position)
            own.mkdir()
            try:
                proxies.append(stack.enter_context(start(setting(own, bench))))
                pin(proxies[-1].pid, cores[0])
            except NotMeasured as reason:
                found[name].skipped = str(reason)
        for round_ in range(plan.rounds + 1):
            for proxy in proxies:
                figures = found[proxy.name]
                if round_ <= proxy.rounds and not figures.skipped:
                    with _peers_may_fail(proxy, figures):
                        _round(plan, bench, proxy, figures, counts=round_ > 0)
        for proxy in proxies[1:]:
            figures = found[proxy.name]
            if not figures.skipped:
                with _peers_may_fail(proxy, figures):
                    figures.held_bytes = _memory(plan, bench, proxy)
    return list(found.values())


def _round(plan: Plan, bench: Bench, proxy: Proxy, figures: Figures, *, counts: bool) -> None:
    """One load of each kind; the first round warms up."""
    if proxy.pid:
        get(bench.upstream, f"/pace/0/{plan.steps.tokens}")
        seconds, audits = bench.run(proxy)
        if counts:
            figures.cpu.append(seconds * 1e6 / (plan.steps.streams * plan.steps.tokens))
            figures.audits += audits
    for streams in plan.paced if counts else plan.paced[:1]:
        audits, spent = (int(get(bench.auditor, path)) for path in ("/count", "/spent"))
        heard = _paced(bench, proxy, streams, plan.paced_tokens, RATE)
        if not counts:
            continue
        figures.delays.setdefault(streams, []).extend(heard)
        audits = int(get(bench.auditor, "/count")) - audits
        if audits:
            figures.auditor_ms = (int(get(bench.auditor, "/spent")) - spent) / audits / 1e6


def _paced(bench: Bench, proxy: Proxy, streams: int, tokens: int, rate: float) -> list[list[float]]:
    clients = _listeners(bench, proxy, streams, tokens, rate)
    try:
        out, complaint = clients.communicate(timeout=LOAD_SECONDS)
    except subprocess.TimeoutExpired:
        clients.kill()
        raise
    if clients.returncode:
        raise WrongReply(f"{proxy.name}: {complaint.strip()}")
    heard: list[list[float]] = json.loads(out)
    return heard


def _listeners(bench: Bench, proxy: Proxy, streams: int, tokens: int, rate: float) -> subprocess.Popen[str]:
    get(bench.upstream, f"/pace/{rate}/{tokens}")
    sizes = [str(streams), str(tokens), str(int(proxy.check != "answer"))]
    command = [sys.executable, "-m", "benchmarks.listeners", str(proxy.port), *sizes]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _memory(plan: Plan, bench: Bench, proxy: Proxy) -> float:
    """By how many bytes the proxy grows, at most, for 1,000 slow streams."""
    streams = min(plan.held, proxy.most_streams)
    before = most = pss_bytes(proxy.pid)
    clients = _listeners(bench, proxy, streams, HELD_TOKENS, plan.held_rate)
    while True:
        try:
            _, complaint = clients.communicate(timeout=0.2)
            break
        except subprocess.TimeoutExpired:
            most = max(most, pss_bytes(proxy.pid))
    if clients.returncode:
        raise WrongReply(f"{proxy.name}: {complaint.strip()}")
    return (most - before) * 1000 / streams


@contextmanager
def _peers_may_fail(proxy: Proxy, figures: Figures) -> Iterator[None]:
    """A peer's wrong reply is a finding, of anything else it is an error."""
    try:
        yield
    except WrongReply as error:
        if not proxy.is_peer:
            raise
        figures.skipped = f"failed: {error}"[:200]


@contextmanager
def _on_cores(cores: Sequence[int]) -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.proxies", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="one small round: whether it runs, not how fast")
    parser.add_argument("--rounds", type=int, metavar="N", help="in place of five")
    parser.add_argument("--nginx", metavar="PATH", help="the nginx to measure, where it isn't on the PATH")
    parser.add_argument("--litellm", metavar="VENV", default=".venv-bench-litellm", help="where LiteLLM is installed")
    parser.add_argument("--nemo", metavar="VENV", default=".venv-bench-nemo", help="where NeMo Guardrails is installed")
    options = parser.parse_args()
    if not sys.platform.startswith("linux"):
        sys.exit("This benchmark reads /proc, so it needs Linux.")
    plan = QUICK if options.quick else FULL
    if options.rounds:
        plan = replace(plan, rounds=options.rounds)

    def setting(folder: Path, bench: Bench) -> Setting:
        venvs = {"litellm": ROOT / options.litellm, "nemo": ROOT / options.nemo}
        return Setting(folder, bench.upstream, bench.auditor, options.nginx, venvs)

    try:
        found = measure(plan, setting)
    except (WrongReply, ProcessFailed, subprocess.TimeoutExpired) as error:
        sys.exit(f"The benchmark failed: {error}")
    content = {
        "benchmark": "proxies",
        "load": {
            "streams": plan.steps.streams,
            "tokens": plan.steps.tokens,
            "rounds": plan.rounds,
            "paced": list(plan.paced),
            "paced_tokens": plan.paced_tokens,
            "rate": RATE,
            "held": plan.held,
            "held_rate": plan.held_rate,
        },
        "machine": facts(options.nginx),
        "results": summary(found, CHUNK_TOKENS, plan.steps.streams * plan.steps.tokens),
    }
    if options.json:
        print(json.dumps(content, ensure_ascii=False))
    else:
        print_table(content, Console())


if __name__ == "__main__":
    main()
