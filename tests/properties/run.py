"""Many random cases of the stream contract, and one of them in small.

python -m tests.properties.run --cases 100000 --processes 2
python -m tests.properties.run --api messages --replay 4711
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from random import SystemRandom
from typing import Any, NamedTuple

from guardtrace_proxy.gate import StartAudit
from guardtrace_proxy.policy.schema import Policy
from tests.properties import oracle, test_messages, test_responses
from tests.properties.cases import draw_case
from tests.properties.draws import Numbers, Replayed, Seeded, Source, shrink
from tests.properties.events import HEAD
from tests.properties.sent import Case
from tests.properties.world import Log, run

BATCH = 500


class Api(NamedTuple):
    """How a case of it is drawn, maybe with what it was made of, and which promises it breaks."""

    draw: Callable[[Source], Any]
    broken_promises: Callable[[Any, Log], Iterable[str]]

    def broken_by(self, source: Source) -> tuple[Case, Log, list[str]]:
        """A case, what happened, and the promises that were broken."""
        drawn = self.draw(source)
        case = drawn if isinstance(drawn, Case) else drawn.case
        log = run(case)
        return case, log, list(self.broken_promises(drawn, log))


APIS = {
    "choices": Api(draw_case, oracle.broken_promises),
    "responses": Api(test_responses.draw, test_responses.broken_promises),
    "messages": Api(test_messages.draw, test_messages.broken_promises),
}
"""``choices`` are chat completions and completions."""


def broken_by(seed: int, api: str = "choices") -> list[str]:
    """The promises that this seed's case breaks."""
    return APIS[api].broken_by(Seeded(seed))[2]


def broken_in(seeds: range, api: str = "choices") -> dict[int, list[str]]:
    """By seed, the promises that were broken."""
    found = {seed: broken_by(seed, api) for seed in seeds}
    return {seed: broken for seed, broken in found.items() if broken}


def smallest(seed: int, api: str = "choices") -> tuple[Case, Log, str]:
    """A small case that breaks the same promise as this seed's."""
    source = Seeded(seed)
    promise = name_of(APIS[api].broken_by(source)[2][0])

    def fails(numbers: Numbers) -> bool:
        return promise in map(name_of, APIS[api].broken_by(Replayed(numbers))[2])

    case, log, broken = APIS[api].broken_by(Replayed(shrink(source.drawn, fails)))
    return case, log, next(line for line in broken if name_of(line) == promise)


def name_of(broken: str) -> str:
    return broken.partition(":")[0]


def told(case: Case, log: Log) -> str:
    """A case and what happened, to read."""
    policy = _differs(case.policy.model_dump(mode="json"), Policy(version=1).model_dump(mode="json"))
    lines = [f"policy {policy}", f"{case.style}, choices {case.choices}, capacity {case.capacity}, {case.ending}"]
    lines += [f"event {number} {_brief(event.raw)}" for number, event in enumerate(case.events)]
    for at, entry in enumerate(log.entries):
        value = entry.value
        if isinstance(value, StartAudit):
            judged = value.judged_thinking, value.judged_answer
            shown = f"{value.id} choice {value.choice} {value.phase.value} {value.thinking!r} {value.answer!r} {judged}"
        else:
            shown = _brief(value) if isinstance(value, bytes) else str(value)
        lines.append(f"{at:3} {entry.what} {shown}")
    return "\n".join(lines)


def _differs(settings: dict[str, Any], plain: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _differs(value, plain[key]) if isinstance(value, dict) else value
        for key, value in settings.items()
        if value != plain[key]
    }


def _brief(raw: bytes) -> str:
    """Frames without what is the same in all of them."""
    shown = []
    for line in raw.decode().splitlines():
        try:
            content = json.loads(line.removeprefix("data: "))
            rest = {key: value for key, value in content.items() if key not in (*HEAD, "choices") and value}
        except (ValueError, AttributeError):
            shown += [line] if line else []
            continue
        for choice in content.get("choices") or []:
            kept = {key: value for key, value in choice.items() if value is not None and key != "index"}
            shown.append(f"{choice.get('index')}: {kept}")
        shown += [str(rest)] if rest else []
    return "\n      ".join(shown)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--api", choices=APIS, default="choices", help="choices: chat completions and completions")
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this time")
    parser.add_argument("--first", type=int, help="the first seed; a random one by default")
    parser.add_argument("--replay", type=int, help="shrink this seed's case and print what happens")
    options = parser.parse_args()
    if options.replay is not None:
        case, log, broken = smallest(options.replay, options.api)
        print(told(case, log), broken, sep="\n\n")
        return 1
    first = SystemRandom().randrange(1 << 40) if options.first is None else options.first
    return _many(options.api, first, options.cases, options.processes, options.seconds)


def _many(api: str, first: int, cases: int, processes: int, seconds: float) -> int:
    began, done = time.monotonic(), 0
    broken: Counter[str] = Counter()
    batches = [range(at, min(at + BATCH, first + cases)) for at in range(first, first + cases, BATCH)]
    with ProcessPoolExecutor(processes) as pool:
        for start in range(0, len(batches), 4 * processes):
            if time.monotonic() - began > seconds:
                break
            together = batches[start : start + 4 * processes]
            for found, batch in zip(pool.map(partial(broken_in, api=api), together), together, strict=True):
                done += len(batch)
                for seed, lines in found.items():
                    broken.update(map(name_of, lines))
                    print(f"seed {seed}: {lines[0]}", file=sys.stderr)
    print(
        f"{done:,} cases from seed {first} in {time.monotonic() - began:.0f} s, {sum(broken.values())} broken promises"
    )
    for name, count in broken.most_common():
        print(f"  {count:,} {name}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
