"""One of the processes that train a stage side by side. Run by :mod:`guardtrace_trainer.stages.processes`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from guardtrace_trainer.stages.dpo import run_dpo, run_ogdpo
from guardtrace_trainer.stages.processes import MESSAGE, SAID
from guardtrace_trainer.stages.settings import DpoSettings, SftSettings, StageError
from guardtrace_trainer.stages.sft import run_sft


def main() -> None:
    """Run the stage that the only argument describes, as :func:`side_by_side` writes it."""
    work = json.loads(sys.argv[1])
    stage, settings = work.pop("stage"), work.pop("settings")
    places = {name: None if work[name] is None else Path(work[name]) for name in ("out", "corpus")}
    data = [Path(path) for path in work.pop("data")]
    rest: dict[str, Any] = {**work, **places, "log": lambda line: print(SAID + line, flush=True)}
    try:
        if stage == "sft":
            run_sft(SftSettings(**settings), data=data, **rest)
        else:
            {"dpo": run_dpo, "ogdpo": run_ogdpo}[stage](DpoSettings(**settings), data=data, **rest)
    except StageError as error:
        print(f"{MESSAGE}{error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
