"""Fuzz the readers of replies: ``python -m tests.fuzz --seconds 60``.

Guided by coverage where atheris is installed (``pip install atheris``; Linux, and what else it has wheels for), else by
Hypothesis with mutated recordings. An input that fails is kept; ``--replay FILE`` checks it again.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from hashlib import sha256
from pathlib import Path

FOUND = Path("build") / "fuzz"
ROUND = 200
"""Inputs that Hypothesis makes at once."""
WORDS = (
    "choices index delta message content reasoning reasoning_content reasoning_details thinking refusal tool_calls "
    "function_call function name arguments type id text summary data signature format finish_reason logprobs token "
    "top_logprobs token_ids usage error role model content_filter_results prompt_filter_results severity filtered "
    "timings stats obfuscation metadata stop_reason matched_stop text tokens text_offset item part response output "
    "item_id output_index content_index summary_index sequence_number output_text reasoning_text summary_text "
    "encrypted_content incomplete_details status annotations message_start message_delta content_block "
    "content_block_start content_block_delta text_delta thinking_delta signature_delta input_json_delta partial_json "
    "tool_use input citations redacted_thinking stop_sequence stop_details"
).split()
MARKS = (
    "data: ",
    "event: response.output_text.delta",
    "event: response.completed",
    "event: content_block_delta",
    "\r\n",
    "\n\n",
    "\r\r",
    ": ",
    "[DONE]",
    "{}",
    "[]",
    "null",
    "<think>",
    "</think>",
    "◁think▷",
    "◁/think▷",
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="how long (default 60)")
    parser.add_argument("--corpus", type=Path, help="folder of inputs to begin with, and to keep new ones in")
    parser.add_argument("--engine", choices=["atheris", "hypothesis"], help="default: atheris if it is installed")
    parser.add_argument("--replay", type=Path, help="check one input, and do nothing else")
    options = parser.parse_args()
    if options.replay is not None:
        from tests.fuzz.properties import check

        check(options.replay.read_bytes())
        print(f"{options.replay}: every property holds")
        return 0
    FOUND.mkdir(parents=True, exist_ok=True)
    has_atheris = importlib.util.find_spec("atheris") is not None
    if (options.engine or ("atheris" if has_atheris else "hypothesis")) == "atheris":
        with tempfile.TemporaryDirectory() as folder:
            fuzz_by_coverage(options.seconds, options.corpus, Path(folder))
        return 0
    return fuzz_by_mutation(options.seconds)


def fuzz_by_coverage(seconds: int, corpus: Path | None, folder: Path) -> None:
    """Run atheris, which ends the process itself."""
    import atheris

    with atheris.instrument_imports(include=["guardtrace_proxy.wire"]):
        from tests.fuzz.properties import check, seeds
    first = folder / "seeds"
    first.mkdir()
    for number, seed in enumerate(seeds()):
        (first / str(number)).write_bytes(seed)
    kept = corpus or folder / "corpus"
    kept.mkdir(parents=True, exist_ok=True)
    words = [json.dumps(f'"{word}":')[1:-1] for word in WORDS]
    marks = ["".join(f"\\x{byte:02x}" for byte in mark.encode()) for mark in MARKS]
    (folder / "words").write_text("".join(f'"{word}"\n' for word in [*words, *marks]))
    limits = [f"-max_total_time={seconds}", "-max_len=4096", "-timeout=10", "-print_final_stats=1"]
    arguments = [f"-dict={folder / 'words'}", f"-artifact_prefix={FOUND}/", *limits, str(kept), str(first)]
    atheris.Setup([sys.argv[0], *arguments], check)
    atheris.Fuzz()


def fuzz_by_mutation(seconds: int) -> int:
    """Hypothesis, a round after another until the time is over."""
    from hypothesis import HealthCheck, Phase, given, seed, settings

    from tests.fuzz.mutations import inputs
    from tests.fuzz.properties import check

    last = b""
    phases = [Phase.generate, Phase.shrink]
    quiet = list(HealthCheck)

    @settings(max_examples=ROUND, deadline=None, database=None, phases=phases, suppress_health_check=quiet)
    @given(inputs)
    def one_round(data: bytes) -> None:
        nonlocal last
        last = data
        check(data)

    began, rounds = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        try:
            seed(rounds)(one_round)()
        except Exception:
            path = FOUND / f"crash-{sha256(last).hexdigest()[:16]}"
            path.write_bytes(last)
            print(f"Kept in {path}: check it again with python -m tests.fuzz --replay {path}", file=sys.stderr)
            raise
        rounds += 1
    print(f"{rounds * ROUND:,} inputs, every property holds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
