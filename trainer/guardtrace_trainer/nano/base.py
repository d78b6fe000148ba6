"""The small recipe's base as a step of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from guardtrace_trainer.nano.plan import WarmUp
from guardtrace_trainer.nano.wording import corpus_hash
from guardtrace_trainer.steps import Step


def make_base(
    folder: Path,
    plan: WarmUp,
    seed: int,
    log: Callable[[str], None],
    *,
    vocabulary: Path | None = None,
    again: bool = False,
) -> Path:
    """Warm up into ``folder``; parts that were finished before a crash aren't trained again. ``vocabulary`` is a folder
    with tokenizer and embeddings; None: those that ship."""
    inputs = [] if vocabulary is None else [vocabulary / "tokenizer.json", vocabulary / "model.safetensors"]
    parts = folder / "parts"

    def clear() -> None:
        for part in parts.iterdir() if parts.exists() else ():
            part.unlink()

    step = Step(
        folder,
        "warm-up",
        inputs=inputs,
        settings={**plan.model_dump(), "seed": seed, "corpus": corpus_hash()},
        again=again,
        clear=clear,
    )
    if step.done:
        return folder
    from guardtrace_trainer.nano import vocabulary as words
    from guardtrace_trainer.nano.export import export
    from guardtrace_trainer.nano.warm_up import warm_up

    if vocabulary is not None:
        words.use(vocabulary)

    log("base: warming up, which sees no analysis and no judgment")
    files = export(warm_up(seed, plan, parts, log, vocabulary), plan, seed, folder)
    step.made(files)
    return folder
