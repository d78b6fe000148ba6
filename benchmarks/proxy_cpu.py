"""CPU microseconds per upstream token: guardtrace beside nginx and a plain forwarder, in one run under one load.

``python -m benchmarks.proxy_cpu [--json] [--quick]``. Counts user and system time of the proxy's process alone, not of
the scripted upstream, the scripted auditor and the clients. What is measured and how: ``benchmarks/README.md``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.contenders import CONTENDERS, NotMeasured, Proxy, Setting
from benchmarks.machine import facts
from benchmarks.processes import ROOT, ProcessFailed, cpu_seconds, free_port, running

LOAD_SECONDS = 180.0
SETTLE_LOADS = 1
"""Loads of each proxy that aren't counted."""


@dataclass(frozen=True)
class Load:
    """``mode`` is the upstream's: see ``benchmarks/upstream.py``."""

    streams: int
    tokens: int
    rounds: int
    mode: str


@dataclass
class Result:
    """One contender's figures: CPU µs per upstream token by round, and how far apart its audits were."""

    name: str
    rounds: list[float] = field(default_factory=list)
    audits: int = 0
    not_measured: str | None = None

    def as_json(self, load: Load, forwarder: float | None) -> dict[str, Any]:
        median = statistics.median(self.rounds) if self.rounds else None
        return {
            "name": self.name,
            "median": median,
            "min": min(self.rounds, default=None),
            "max": max(self.rounds, default=None),
            "rounds": self.rounds,
            "ratio_to_forwarder": median / forwarder if median is not None and forwarder else None,
            "tokens_per_audit": self._counted(load) / self.audits if self.audits else None,
            "not_measured": self.not_measured,
        }

    def _counted(self, load: Load) -> int:
        return len(self.rounds) * load.streams * load.tokens


class WrongReply(Exception):
    """A proxy failed the load, so its CPU time means nothing."""


@dataclass(frozen=True)
class Bench:
    """The servers that all contenders share."""

    load: Load
    upstream: int
    auditor: int

    def run(self, proxy: Proxy) -> tuple[float, int]:
        """One load through one proxy: CPU seconds, and audits."""
        get(self.upstream, f"/watch/{proxy.pid}")
        audits, cpu = int(get(self.auditor, "/count")), cpu_seconds(proxy.pid)
        sizes = [str(self.load.streams), str(self.load.tokens)]
        command = [sys.executable, "-m", "benchmarks.load", str(proxy.port), *sizes, proxy.check]
        clients = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LOAD_SECONDS, check=False)
        if clients.returncode:
            raise WrongReply(f"{proxy.name}: {clients.stderr.strip()}")
        return cpu_seconds(proxy.pid) - cpu, int(get(self.auditor, "/count")) - audits


def measure(load: Load, nginx: str | None) -> list[Result]:
    """All contenders' figures, their rounds interleaved. Raises WrongReply or ProcessFailed."""
    results = {name: Result(name) for name in CONTENDERS}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="proxy-cpu-")))
        folder.chmod(0o755)  # nginx's worker is another user where its master is root
        bench = stack.enter_context(shared_servers(load, folder))
        proxies: list[Proxy] = []
        for position, (name, start) in enumerate(CONTENDERS.items()):
            own = folder / str(position)
            own.mkdir()
            try:
                proxies.append(stack.enter_context(start(Setting(own, bench.upstream, bench.auditor, nginx))))
            except NotMeasured as reason:
                results[name].not_measured = str(reason)
        for round_ in range(SETTLE_LOADS + load.rounds):
            for proxy in proxies:
                seconds, audits = bench.run(proxy)
                if round_ >= SETTLE_LOADS:
                    results[proxy.name].rounds.append(seconds * 1e6 / (load.streams * load.tokens))
                    results[proxy.name].audits += audits
    return list(results.values())


@contextmanager
def shared_servers(load: Load, folder: Path) -> Iterator[Bench]:
    """The upstream and the auditor."""
    upstream, auditor = free_port(), free_port()
    command = [sys.executable, "-m", "benchmarks.upstream", str(upstream), str(load.tokens), load.mode]
    with (
        running(command, upstream, folder / "upstream.log"),
        running([sys.executable, "-m", "benchmarks.auditor", str(auditor)], auditor, folder / "auditor.log"),
    ):
        get(upstream, f"/streams/{load.streams}")
        yield Bench(load, upstream, auditor)


def get(port: int, path: str) -> str:
    """What one of the scripted servers says."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{port}{path}", timeout=10) as response:
        return str(response.read().decode())


def report(load: Load, results: Sequence[Result], machine: dict[str, str | float]) -> dict[str, Any]:
    """Everything as one JSON object."""
    forwarder = next((statistics.median(each.rounds) for each in results if each.name == "forwarder"), None)
    return {
        "benchmark": "proxy_cpu",
        "unit": "CPU µs per upstream token",
        "load": {"streams": load.streams, "tokens": load.tokens, "rounds": load.rounds, "mode": load.mode},
        "machine": machine,
        "results": [each.as_json(load, forwarder) for each in results],
    }


def print_table(content: dict[str, Any], console: Console) -> None:
    """The same for a reader."""
    load = content["load"]
    title = f"CPU µs per upstream token: {load['streams']} streams × {load['tokens']} tokens, {load['mode']}"
    table = Table(title=title, caption=f"median of {load['rounds']} rounds", title_justify="left")
    table.add_column("proxy")
    for column in ("median", "min … max", "of the forwarder's", "tokens per audit"):
        table.add_column(column, justify="right")
    for each in content["results"]:
        if each["not_measured"]:
            table.add_row(each["name"], "not measured", each["not_measured"])
            continue
        ratio, audits = each["ratio_to_forwarder"], each["tokens_per_audit"]
        table.add_row(
            each["name"],
            f"{each['median']:.1f}",
            f"{each['min']:.1f} … {each['max']:.1f}",
            "" if ratio is None else f"{ratio:.2f}",
            "" if audits is None else f"{audits:.1f}",
        )
    console.print(table)
    console.print("; ".join(f"{name} {value}" for name, value in content["machine"].items()), soft_wrap=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.proxy_cpu", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="one small round: whether it runs, not how fast")
    parser.add_argument("--flood", action="store_true", help="the upstream doesn't wait for the proxy between steps")
    parser.add_argument("--nginx", metavar="PATH", help="the nginx to measure, where it isn't on the PATH")
    options = parser.parse_args()
    if not sys.platform.startswith("linux"):
        sys.exit("This benchmark reads /proc, so it needs Linux.")
    mode = "flood" if options.flood else "steps"
    load = Load(4, 100, 1, mode) if options.quick else Load(32, 500, 5, mode)
    try:
        results = measure(load, options.nginx)
    except (WrongReply, ProcessFailed, subprocess.TimeoutExpired) as error:
        sys.exit(f"The benchmark failed: {error}")
    content = report(load, results, facts(options.nginx))
    if options.json:
        print(json.dumps(content, ensure_ascii=False))
    else:
        print_table(content, Console())


if __name__ == "__main__":
    main()
