"""Several processes train as one does with as many rows a step, and leave nobody behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from guardtrace_trainer.stages.dpo import run_dpo
from guardtrace_trainer.stages.settings import DpoSettings, StageError
from guardtrace_trainer.stages.trainers import last_checkpoint
from tests.ports import free_port
from tests.waiting import eventually

pytestmark = pytest.mark.slow  # each process imports torch, transformers and TRL
ROOT = Path(__file__).parents[3]
FEW = DpoSettings(max_steps=4, batch_size=4, learning_rate=1e-3, logging_steps=1, save_steps=2)
TWO = FEW.model_copy(update={"batch_size": 2, "processes": 2})


def close(one: Path, other: Path) -> bool:
    first, second = (load_file(folder / "model.safetensors") for folder in (one, other))
    return all(torch.allclose(first[name], second[name], atol=1e-4) for name in first)


def commands() -> list[bytes]:
    """Of all processes."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended meanwhile
            found.append(path.read_bytes())
    return found


def run(settings: DpoSettings, base: Path, corpus: Path, out: Path, log=lambda _: None) -> Path:
    return run_dpo(settings, base=str(base), data=[corpus / "pairs.jsonl"], out=out, seed=1, log=log)


def test_two_processes_come_to_the_same(small, corpus, tmp_path):
    said: list[str] = []
    one = run(FEW, small, corpus, tmp_path / "one", said.append)
    spread: list[str] = []
    two = run(TWO, small, corpus, tmp_path / "two", spread.append)
    assert [line.partition(":")[0] for line in said] == [line.partition(":")[0] for line in spread]
    assert len(spread) == 6
    assert close(one, two)
    assert not (two / "training").exists()
    assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in two.iterdir())
    again: list[str] = []
    run(TWO, small, corpus, two, again.append)
    assert again == [f"dpo: {two} is done already"]


def test_the_main_process_goes_first(tmp_path):
    script = f"""
import os, time
from pathlib import Path
from guardtrace_trainer.stages.processes import main_process_first
rank = os.environ["RANK"]
with main_process_first() as is_first, Path({str(tmp_path / "said")!r}).open("a", buffering=1) as said:
    print(rank, "in", is_first, file=said)
    time.sleep(1 - int(rank))
    print(rank, "out", file=said)
"""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "trainer")]), **address}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
        )
        for rank in range(2)
    ]
    assert [process.wait(120) for process in running] == [0, 0]
    assert (tmp_path / "said").read_text().splitlines() == ["0 in True", "0 out", "1 in False", "1 out"]


def test_what_is_wrong_is_said_as_with_one(small, corpus, tmp_path):
    with pytest.raises(StageError, match="12 rows are longer than max_length, 64 tokens"):
        run(TWO.model_copy(update={"max_length": 64}), small, corpus, tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of their parent's death")
def test_they_end_with_the_process_that_started_them_and_are_gone_on_with(small, corpus, tmp_path):
    second_epoch = {"max_steps": 6, "save_steps": 4}  # of three steps each
    one, two = (settings.model_copy(update=second_epoch) for settings in (FEW, TWO))
    out = tmp_path / "killed"
    script = f"""
import os, signal
from pathlib import Path
from guardtrace_trainer.stages.dpo import run_dpo
from guardtrace_trainer.stages.settings import DpoSettings
def log(line):
    if line.startswith("step 5 "):
        os.kill(os.getpid(), signal.SIGKILL)
settings = DpoSettings.model_validate_json({two.model_dump_json()!r})
run_dpo(settings, base={str(small)!r}, data=[Path({str(corpus / "pairs.jsonl")!r})], out=Path({str(out)!r}), seed=1, log=log)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "trainer")])}
    killed = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    assert eventually(lambda: not [command for command in commands() if str(out).encode() in command])
    assert last_checkpoint(out / "training") == out / "training" / "checkpoint-4"
    said: list[str] = []
    run(two, small, corpus, out, said.append)
    assert "dpo: goes on from checkpoint-4" in said
    assert close(out, run(one, small, corpus, tmp_path / "one"))
