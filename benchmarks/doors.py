"""What each door costs: CPU µs per token and added delay of no guard, the proxy and the middleware, in one run.

``python -m benchmarks.doors [--json] [--quick]``. CPU time is that of the model server and, where there is one, the
proxy's process together. What is measured and how: ``benchmarks/README.md``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.load import WrongReply
from benchmarks.machine import facts
from benchmarks.processes import ROOT, ProcessFailed, cpu_seconds, free_port, running

EXTRA_EVENTS = 2
"""Beside a reply's tokens: its role and its finish. ``[DONE]`` carries no stamp."""
SETTLE_LOADS = 1
"""Loads of each door that aren't counted."""
LOAD_SECONDS = 180.0


@dataclass(frozen=True)
class Load:
    """``rate`` is in tokens a second, of each stream."""

    streams: int
    tokens: int
    rate: float
    rounds: int


@dataclass(frozen=True)
class Door:
    """Where clients ask, and the processes whose CPU time counts."""

    port: int
    pids: Sequence[int]


@dataclass
class Result:
    """CPU µs per token by round, and every event's delay in ns."""

    name: str
    rounds: list[float] = field(default_factory=list)
    delays: list[int] = field(default_factory=list)

    def as_json(self, none: Result) -> dict[str, Any]:
        cpu = statistics.median(self.rounds)
        percentiles = statistics.quantiles(self.delays, n=100)
        return {
            "name": self.name,
            "cpu_us": cpu,
            "cpu_us_rounds": self.rounds,
            "added_cpu_us": cpu - statistics.median(none.rounds),
            "delay_ms_p50": percentiles[49] / 1e6,
            "delay_ms_p99": percentiles[98] / 1e6,
        }


Start = Callable[[Load, Path, int], AbstractContextManager[Door]]


@contextmanager
def no_guard(load: Load, folder: Path, auditor: int) -> Iterator[Door]:
    """The model server alone."""
    port = free_port()
    with running(_server(port, load), port, folder / "server.log") as pid:
        yield Door(port, [pid])


def proxy(mode: str) -> Start:
    """``guardtrace serve`` before the model server."""

    @contextmanager
    def start(load: Load, folder: Path, auditor: int) -> Iterator[Door]:
        with no_guard(load, folder, auditor) as behind:
            port = free_port()
            upstreams = {"default": {"base_url": f"http://127.0.0.1:{behind.port}/v1"}}
            config = _settings(folder, mode, auditor, {"server": {"port": port}, "upstreams": upstreams})
            program = "from guardtrace_proxy.cli.app import main; main()"
            command = [sys.executable, "-c", program, "serve", "--config", str(config)]
            with running(command, port, folder / "proxy.log") as pid:
                yield Door(port, [*behind.pids, pid])

    return start


def middleware(mode: str) -> Start:
    """The guard inside the model server."""

    @contextmanager
    def start(load: Load, folder: Path, auditor: int) -> Iterator[Door]:
        port = free_port()
        config = _settings(folder, mode, auditor, {})
        with running([*_server(port, load), str(config)], port, folder / "server.log") as pid:
            yield Door(port, [pid])

    return start


DOORS: dict[str, Start] = {
    "none": no_guard,
    "proxy, monitor": proxy("monitor"),
    "middleware, monitor": middleware("monitor"),
    "proxy, hold": proxy("balanced"),
    "middleware, hold": middleware("balanced"),
}


def _server(port: int, load: Load) -> list[str]:
    return [sys.executable, "-m", "benchmarks.paced", str(port), str(load.tokens), str(load.rate)]


def _settings(folder: Path, policy: str, auditor: int, more: dict[str, Any]) -> Path:
    settings = {
        "auditor": {"base_url": f"http://127.0.0.1:{auditor}/v1", "model": "guard", "depth": "annotate"},
        "tenants": {"all": {"policy": policy}},
        "anonymous_tenant": "all",
        **more,
    }
    path = folder / "guardtrace.yaml"
    path.write_text(json.dumps(settings), "utf-8")  # JSON is YAML
    return path


def measure(load: Load) -> list[Result]:
    """All doors' figures, their rounds interleaved. Raises WrongReply or ProcessFailed."""
    results = [Result(name) for name in DOORS]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="doors-")))
        auditor = free_port()
        command = [sys.executable, "-m", "benchmarks.auditor", str(auditor)]
        stack.enter_context(running(command, auditor, folder / "auditor.log"))
        doors = []
        for number, start in enumerate(DOORS.values()):
            own = folder / str(number)
            own.mkdir()
            doors.append(stack.enter_context(start(load, own, auditor)))
        for round_ in range(SETTLE_LOADS + load.rounds):
            for result, door in zip(results, doors, strict=True):
                cpu, delays = run(load, door)
                if round_ >= SETTLE_LOADS:
                    result.rounds.append(cpu * 1e6 / (load.streams * load.tokens))
                    result.delays += delays
    return results


def run(load: Load, door: Door) -> tuple[float, list[int]]:
    """One load through one door: CPU seconds, and each event's delay in ns."""
    before = sum(map(cpu_seconds, door.pids))
    sizes = [str(load.streams), str(load.tokens + EXTRA_EVENTS)]
    command = [sys.executable, "-m", "benchmarks.readers", str(door.port), *sizes]
    clients = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LOAD_SECONDS, check=False)
    if clients.returncode:
        raise WrongReply(clients.stderr.strip())
    return sum(map(cpu_seconds, door.pids)) - before, json.loads(clients.stdout)


def report(load: Load, results: Sequence[Result], machine: dict[str, str | float]) -> dict[str, Any]:
    """Everything as one JSON object."""
    return {
        "benchmark": "doors",
        "load": {"streams": load.streams, "tokens": load.tokens, "rate": load.rate, "rounds": load.rounds},
        "machine": machine,
        "results": [result.as_json(results[0]) for result in results],
    }


def print_table(content: dict[str, Any], console: Console) -> None:
    """The same for a reader."""
    load = content["load"]
    title = f"{load['streams']} streams × {load['tokens']} tokens at {load['rate']:g} tokens/s, {load['rounds']} rounds"
    table = Table(title=title, title_justify="left")
    table.add_column("door")
    for column in ("CPU µs a token", "more than none", "delay p50 ms", "delay p99 ms"):
        table.add_column(column, justify="right")
    for each in content["results"]:
        rounds = f"{each['cpu_us']:.0f} ({min(each['cpu_us_rounds']):.0f} … {max(each['cpu_us_rounds']):.0f})"
        delays = (f"{each['delay_ms_p50']:.2f}", f"{each['delay_ms_p99']:.2f}")
        table.add_row(each["name"], rounds, f"{each['added_cpu_us']:.0f}", *delays)
    console.print(table)
    console.print("; ".join(f"{name} {value}" for name, value in content["machine"].items()), soft_wrap=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.doors", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="one small round: whether it runs, not how fast")
    options = parser.parse_args()
    load = Load(4, 40, 100.0, 1) if options.quick else Load(16, 250, 50.0, 5)
    try:
        results = measure(load)
    except (WrongReply, ProcessFailed, subprocess.TimeoutExpired) as error:
        sys.exit(f"The benchmark failed: {error}")
    content = report(load, results, facts())
    if options.json:
        print(json.dumps(content, ensure_ascii=False))
    else:
        print_table(content, Console())


if __name__ == "__main__":
    main()
