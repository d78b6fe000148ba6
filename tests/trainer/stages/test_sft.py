"""Stage 1 for real, a few steps: what it learns, what it leaves alone, what it writes, and that it can be killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import anyio
import msgspec
import pytest
import torch
from safetensors.torch import load_file

from guardtrace_proxy.auditor.prompt import SYSTEM_PROMPT, Query, Trace, Turn
from guardtrace_proxy.auditor.protocol import Depth
from guardtrace_proxy.policy.levels import Level, Verdict
from guardtrace_trainer.rows import Annotation, write_rows
from guardtrace_trainer.stages import training
from guardtrace_trainer.stages.encode import Encoder
from guardtrace_trainer.stages.settings import Lora, SftSettings, StageError
from guardtrace_trainer.stages.sft import examples, run_sft
from guardtrace_trainer.stages.trainers import last_checkpoint
from guardtrace_trainer.steps import Manifest, StepError
from tests.auditor.local import started
from tests.trainer.stages.corpora import labelled

FEW = SftSettings(max_steps=6, batch_size=4, learning_rate=1e-2, logging_steps=1, save_steps=2, bare_share=0.2)
ROOT = Path(__file__).parents[3]


def nothing(_: str) -> None:
    """A log for nobody."""


def manifest(folder: Path) -> Manifest:
    return msgspec.json.decode((folder / "sft.manifest.json").read_bytes(), type=Manifest)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def changed(one: Path, other: Path) -> set[str]:
    before, after = weights(one), weights(other)
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name].float(), after[name].float())}


@pytest.fixture(scope="module")
def trained(small, corpus, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("sft")
    return run_sft(FEW, base=str(small), data=[corpus / "sft.jsonl"], out=out, seed=3, log=nothing)


def test_the_loss_falls(trained):
    losses = manifest(trained).counts["losses"]
    assert len(losses) == 6
    assert losses[-1] < 0.8 * losses[0]


def test_the_result_is_the_base_with_other_weights(trained, small):
    kept = {path.name for path in small.iterdir()}
    assert {path.name for path in trained.iterdir()} == {*kept, "sft.manifest.json", "sft.log.jsonl"}
    for name in kept - {"config.json", "model.safetensors", "guardtrace.json"}:
        assert (trained / name).read_bytes() == (small / name).read_bytes(), name
    own = json.loads((trained / "guardtrace.json").read_text("utf-8"))
    assert own["system_prompt"] == "You judge."
    assert own["max_context"] == 1024
    assert own["stages"] == [{"stage": "sft", "seed": 3, "examples": 30, "steps": 6}]
    assert all(tensor.dtype == torch.float32 for tensor in weights(trained).values())
    assert changed(small, trained)


def test_the_embedded_auditor_trained_on_is_run_by_the_proxy(corpus, tmp_path):
    few = SftSettings(max_steps=2, batch_size=2, learning_rate=1e-5)
    run_sft(few, base="builtin:nano", data=[corpus / "sft.jsonl"], out=tmp_path, seed=0, log=nothing)
    auditor = started(tmp_path)
    assert auditor.system_prompt == "You are a safety auditor."
    assert auditor.max_context == 704
    assert not (tmp_path / "calibration.json").exists()

    async def judged() -> list[Verdict]:
        session = await auditor.open(Query([Turn("user", "How do I bake bread?")]))
        try:
            return [await session.judge(Trace("I explain how to knead the dough."), depth) for depth in Depth]
        finally:
            await session.aclose()

    assert [verdict.level for verdict in anyio.run(judged)] == [Level.SAFE, Level.SAFE]


def test_other_weights_do_not_keep_the_calibration_of_the_earlier_ones(small, corpus, tmp_path):
    base, out, few = shutil.copytree(small, tmp_path / "base"), tmp_path / "out", SftSettings(max_steps=1, batch_size=2)
    said: list[str] = []

    def run(again: bool = False) -> None:
        run_sft(few, base=str(base), data=[corpus / "sft.jsonl"], out=out, seed=0, log=said.append, again=again)

    run()
    for folder in (base, out):
        (folder / "calibration.json").write_text('{"temperature": 2.0, "escalate_at": 0.1}', "utf-8")
    run()
    assert said[-1] == f"sft: {out} is done already"
    assert (out / "calibration.json").exists()
    run(again=True)
    assert not (out / "calibration.json").exists()
    assert "calibration.json" not in manifest(out).outputs


def test_the_manifest_says_what_it_was_made_from(trained, small, corpus):
    made = manifest(trained)
    assert {Path(name).name for name in made.inputs} == {"sft.jsonl", *(path.name for path in small.iterdir())}
    assert set(made.outputs) == {path.name for path in small.iterdir()}
    assert made.settings["learning_rate"] == 1e-2
    assert made.settings["seed"] == 3
    assert made.counts["examples"] == 30
    assert made.versions.keys() >= {"torch", "transformers", "trl"}


def test_a_second_run_passes_over_and_another_is_refused(trained, small, corpus):
    said: list[str] = []
    before = (trained / "model.safetensors").stat().st_mtime_ns
    run_sft(FEW, base=str(small), data=[corpus / "sft.jsonl"], out=trained, seed=3, log=said.append)
    assert said == [f"sft: {trained} is done already"]
    assert (trained / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(StepError, match="seed"):
        run_sft(FEW, base=str(small), data=[corpus / "sft.jsonl"], out=trained, seed=4, log=nothing)


def test_a_training_that_was_killed_goes_on_to_the_same_weights(trained, small, corpus, tmp_path):
    script = f"""
import os, signal
from pathlib import Path
from guardtrace_trainer.stages.settings import SftSettings
from guardtrace_trainer.stages.sft import run_sft
def log(line):
    if line.startswith("step 3 "):
        os.kill(os.getpid(), signal.SIGKILL)
settings = SftSettings.model_validate_json({FEW.model_dump_json()!r})
run_sft(settings, base={str(small)!r}, data=[Path({str(corpus / "sft.jsonl")!r})], out=Path({str(tmp_path)!r}), seed=3, log=log)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "trainer")])}
    killed = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    assert not (tmp_path / "model.safetensors").exists()
    half = tmp_path / "training" / "checkpoint-3"  # what a kill while saving leaves behind
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"")
    said: list[str] = []
    run_sft(FEW, base=str(small), data=[corpus / "sft.jsonl"], out=tmp_path, seed=3, log=said.append)
    assert "sft: goes on from checkpoint-2" in said
    assert not any(line.startswith("step 2 ") for line in said)
    assert not changed(trained, tmp_path)
    assert manifest(tmp_path).counts == manifest(trained).counts
    assert not (tmp_path / "training").exists()


@pytest.mark.parametrize("update", [{"lora": Lora(rank=4, alpha=8)}, {"optimizer": "muon"}])
def test_so_does_one_with_adapters_or_muon(update, small, corpus, tmp_path):
    settings = FEW.model_copy(update=update)

    def run(out: str, log=nothing) -> Path:
        return run_sft(settings, base=str(small), data=[corpus / "sft.jsonl"], out=tmp_path / out, seed=3, log=log)

    def stop(line: str) -> None:
        if line.startswith("step 5 "):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("stopped", stop)
    said: list[str] = []
    run("stopped", said.append)
    assert "sft: goes on from checkpoint-4" in said
    assert not changed(run("whole"), tmp_path / "stopped")


def test_muon_takes_other_steps_and_is_never_for_adapters(trained, small, corpus, tmp_path):
    settings = FEW.model_copy(update={"optimizer": "muon"})
    other = run_sft(settings, base=str(small), data=[corpus / "sft.jsonl"], out=tmp_path, seed=3, log=nothing)
    losses = manifest(other).counts["losses"]
    assert losses[-1] < losses[0]
    assert losses[0] == manifest(trained).counts["losses"][0]
    assert changed(trained, other)
    with pytest.raises(ValueError, match="muon steps whole matrices"):
        SftSettings(optimizer="muon", lora=Lora())


def test_half_written_checkpoints_dont_count(tmp_path):
    assert last_checkpoint(tmp_path) is None
    for step, content in ((8, '{"global_step": 8}'), (10, '{"global_step": 10}'), (12, '{"glob')):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(content)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


@pytest.mark.parametrize(
    ("settings", "left_alone"),
    [
        ({}, {"visual"}),
        ({"freeze_embeddings": True}, {"visual", "embed_tokens"}),
        ({"freeze_vision": False}, set()),
    ],
)
def test_what_is_frozen_stays_as_it_was(small, corpus, tmp_path, settings, left_alone):
    few = SftSettings(max_steps=4, batch_size=4, learning_rate=1e-2, **settings)
    run_sft(few, base=str(small), data=[corpus / "sft.jsonl"], out=tmp_path, seed=0, log=nothing)
    moved = changed(small, tmp_path)
    assert any("model.layers" in name for name in moved)
    for part in ("visual", "embed_tokens"):
        assert any(part in name for name in moved) is (part not in left_alone), part


def test_the_first_layers_stay_as_they_were(small, corpus, tmp_path):
    def run(count: int) -> Path:
        few = SftSettings(max_steps=2, batch_size=4, learning_rate=1e-2, freeze_layers=count)
        return run_sft(
            few, base=str(small), data=[corpus / "sft.jsonl"], out=tmp_path / str(count), seed=0, log=nothing
        )

    moved = changed(small, run(1))
    assert {int(name.split("layers.")[1].split(".")[0]) for name in moved if "model.layers" in name} == {1}
    with pytest.raises(StageError, match="freeze_layers: the base has 2 layers"):
        run(2)


def test_adapters_are_merged_into_a_whole_checkpoint(small, corpus, tmp_path):
    few = SftSettings(max_steps=2, batch_size=4, learning_rate=1e-2, lora=Lora(rank=4, alpha=8))
    out = run_sft(few, base=str(small), data=[corpus / "sft.jsonl"], out=tmp_path, seed=0, log=nothing)
    moved = changed(small, out)
    linear = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert {name.split(".")[-2] for name in moved} == linear
    assert all("visual" not in name and name.endswith(".weight") for name in moved)
    ranks = {
        name: int(torch.linalg.matrix_rank((weights(out)[name] - weights(small)[name].float()).double(), tol=1e-5))
        for name in moved
    }
    assert set(ranks.values()) <= {1, 2, 3, 4}
    started(out)


def test_settings_decide_the_system_prompt_that_is_served(small, corpus, tmp_path):
    base = shutil.copytree(small, tmp_path / "base")
    (base / "guardtrace.json").unlink()
    few = SftSettings(max_steps=1, batch_size=2, save_dtype="bfloat16")
    out = run_sft(few, base=str(base), data=[corpus / "sft.jsonl"], out=tmp_path / "out", seed=0, log=nothing)
    assert json.loads((out / "guardtrace.json").read_text("utf-8"))["system_prompt"] == SYSTEM_PROMPT
    assert all(tensor.dtype == torch.bfloat16 for tensor in weights(out).values())


def test_what_cant_be_trained_on_is_said_before_training(small, corpus, tmp_path):
    data = corpus / "sft.jsonl"
    with pytest.raises(StageError, match="max_length: 2000 tokens are more than the checkpoint's context, 1024"):
        run_sft(SftSettings(max_length=2000), base=str(small), data=[data], out=tmp_path / "a", seed=0, log=nothing)
    with pytest.raises(StageError, match="24 rows are longer than max_length, 64 tokens"):
        run_sft(SftSettings(max_length=64), base=str(small), data=[data], out=tmp_path / "b", seed=0, log=nothing)
    with pytest.raises(StageError, match=r"no config\.json"):
        run_sft(FEW, base=str(corpus), data=[data], out=tmp_path / "c", seed=0, log=nothing)
    write_rows(tmp_path / "none.jsonl", labelled(0))
    with pytest.raises(StageError, match="nothing to learn"):
        run_sft(FEW, base=str(small), data=[tmp_path / "none.jsonl"], out=tmp_path / "d", seed=0, log=nothing)


def test_a_sharded_vision_tower_is_never_trained(small, corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    tower = SftSettings(freeze_vision=False)
    with pytest.raises(StageError, match="freeze_vision: FSDP can't train the vision tower; leave it frozen"):
        run_sft(tower, base=str(small), data=[corpus / "sft.jsonl"], out=tmp_path, seed=0, log=nothing)
    assert not list(tmp_path.iterdir())


def test_of_several_processes_only_the_first_begins_anew(small, corpus, tmp_path, monkeypatch):
    def run(again: bool = True) -> None:
        run_sft(FEW, base=str(small), data=[corpus / "sft.jsonl"], out=tmp_path, seed=0, log=nothing, again=again)

    monkeypatch.setattr(training, "_train", lambda *_: None)
    run(again=False)
    begun = tmp_path / "training" / "by the first"
    begun.parent.mkdir()
    begun.touch()
    with monkeypatch.context() as second:
        second.setattr(training, "main_process_first", lambda: nullcontext(False))
        run()
    assert begun.exists()
    run()
    assert not begun.exists()


def test_a_killed_again_goes_on_from_its_checkpoint(small, corpus, tmp_path, monkeypatch):
    def run(seed: int = 0) -> None:
        run_sft(FEW, base=str(small), data=[corpus / "sft.jsonl"], out=tmp_path, seed=seed, log=nothing, again=True)

    monkeypatch.setattr(training, "_train", lambda *_: None)
    run()
    checkpoint = tmp_path / "training" / "checkpoint-2"
    checkpoint.mkdir(parents=True)
    run()
    assert checkpoint.exists()
    run(seed=1)
    assert not checkpoint.exists()


def test_an_empty_analysis_teaches_the_bare_judgment(small, corpus, rows):
    encoder = Encoder(small)
    row = msgspec.structs.replace(rows[0], annotation=Annotation(judge="j", level=0.5, analysis=""))
    [example] = examples([(corpus, row)], encoder, SftSettings(), limit=1024, seed=0)
    assert example.tails == (encoder.bare(row.annotation),)
    assert example.tails[0].given > 0


@pytest.mark.parametrize("place", [".", "next", ".."])
def test_a_stage_never_writes_over_the_checkpoint_that_it_starts_from(small, corpus, tmp_path, place):
    base = shutil.copytree(small, tmp_path / "work" / "base")
    before = weights(base)
    with pytest.raises(StageError, match=r"--out .* is --base .*, or one lies in the other"):
        run_sft(FEW, base=str(base), data=[corpus / "sft.jsonl"], out=base / place, seed=0, log=nothing, again=True)
    assert not list(tmp_path.rglob("*.manifest.json"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(base).items())


@pytest.mark.parametrize(
    ("changes", "settings", "said"),
    [
        ({"image": "../x.png"}, {}, r"field image: \.\./x\.png leads out"),
        ({"image": "images/none.png"}, {}, r"field image: .*none\.png can't be read"),
        ({"thinking": "And so on. " * 400}, {"max_length": 700}, r".* \(\d{4}\)\. Take them out"),
    ],
)
def test_rows_that_dont_fit_are_named_with_file_and_line(small, corpus, tmp_path, changes, settings, said):
    row = msgspec.structs.replace(labelled()[0], **changes)
    data = corpus / f"unfit-{len(changes)}.jsonl"
    write_rows(data, [labelled()[1], row])
    with pytest.raises(StageError, match=rf"{data}, line 2, row {row.id},? ?{said}"):
        run_sft(
            FEW.model_copy(update=settings), base=str(small), data=[data], out=tmp_path / "out", seed=0, log=nothing
        )
