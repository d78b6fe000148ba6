"""The whole small recipe for real, with a few steps of each stage; what was done is passed over, what was killed goes on."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

pytest.importorskip("trl", reason="the extra `train` isn't installed")

from guardtrace_trainer.nano import serving
from guardtrace_trainer.nano.card import card
from guardtrace_trainer.nano.ship import SHIPPED, ship
from guardtrace_trainer.recipe import Recipe
from guardtrace_trainer.rows import Pair, read_rows
from guardtrace_trainer.run import Runner
from guardtrace_trainer.settings import read_settings
from guardtrace_trainer.stages.conflicts import Conflict
from guardtrace_trainer.stages.folders import folder_of
from guardtrace_trainer.steps import Manifest
from tests.ports import free_port

RECIPE = Path(__file__).parents[2] / "trainer" / "recipes" / "nano.yaml"
STEPS = (
    "expand", "generate", "annotate", "stratify", "review", "onset", "prefixes", "warm-up", "sft", "dpo", "mine", "ogdpo",
    "streaming",
)  # fmt: skip


def small_recipe(folder: Path) -> Path:
    """The recipe that ships, with fewer requests and a few steps, trained in one process."""
    text = RECIPE.read_text("utf-8")
    for pattern, value in (
        (r"requests: \d+", "requests: 150"),
        (r"vision_steps: \d+", "vision_steps: 2, vision_batch: 4"),
        (r"nearby_steps: \d+, language_steps: \d+", "nearby_steps: 2, language_steps: 2"),
        (r"held_out: \d+", "held_out: 4"),
        (r"epochs: \d+|max_steps: \d+", "max_steps: 2"),
        (r"save_steps: \d+", "save_steps: 1"),
        (r"processes: 2", "processes: 1"),
        (r"  data: .*\n  streaming: .*\n", "  may_be_mute: true\n"),
        (r"18765", str(free_port())),
        (r"folder: .*", f"folder: {folder / 'run'}"),
    ):
        text, count = re.subn(pattern, value, text)
        assert count, pattern
    path = folder / "recipe.yaml"
    path.write_text(text, "utf-8")
    return path


def start(recipe: Path, *options: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "guardtrace_trainer", "run", str(recipe), *options]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def run(recipe: Path, *options: str) -> str:
    process = start(recipe, *options)
    _, said = process.communicate(timeout=900)
    assert process.returncode == 0, said[-3000:]
    return said


def manifests(folder: Path) -> dict[str, Manifest]:
    found = [msgspec.json.decode(path.read_bytes(), type=Manifest) for path in folder.rglob("*.manifest.json")]
    return {manifest.step: manifest for manifest in found}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    return small_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="module")
def folder(recipe) -> Path:
    run(recipe)
    return recipe.parent / "run"


def test_every_step_is_done_and_has_its_manifest(folder):
    found = manifests(folder)
    assert set(STEPS) <= found.keys()
    assert all(found[step].seconds is not None for step in STEPS)
    assert found["sft"].counts["steps"] == found["dpo"].counts["steps"] == found["ogdpo"].counts["steps"] == 2


def test_the_report_names_every_stage_and_subset(folder):
    report = (folder / "report.html").read_text("utf-8")
    for words in (
        "base",
        "sft − base",
        "ogdpo − dpo",
        "hard negatives",
        "new goals",
        "Stages on controls",
        "Streams of streams, last stage",
    ):
        assert words in report, words


def test_what_was_mined_can_be_read(recipe, folder, tmp_path):
    assert read_rows(folder / "corpus" / "expert_pairs.jsonl", Pair)
    settings = read_settings(recipe, Recipe)
    assert settings.nano is not None
    with serving.parties(folder / "corpus", seed=settings.seed, port=settings.nano.port):
        # A model of a few steps writes nothing that can be read, so the one that ships is mined.
        shutil.copytree(folder / "corpus", tmp_path / "corpus")
        runner = Runner(settings.model_copy(update={"folder": tmp_path}), recipe, lambda line: None)
        trained_on = runner._mine(folder_of("builtin:nano"))
    names = ("pairs.jsonl", "pair_prefixes.jsonl")
    pairs = {pair.id: pair for name in names for pair in read_rows(folder / "corpus" / name, Pair)}
    files = ("mined/mined.jsonl", "corpus/expert_pairs.jsonl", "mined/replay.jsonl")
    assert trained_on == [tmp_path / name for name in files]
    mined = read_rows(tmp_path / "mined" / "mined.jsonl", Pair)
    conflicts = {row.id: row for row in read_rows(tmp_path / "mined" / "oracle.jsonl", Conflict)}
    assert mined
    replay = read_rows(tmp_path / "mined" / "replay.jsonl", Pair)
    assert settings.mine is not None
    assert 0 < len(replay) <= settings.mine.replay * len(mined)
    assert not {row.id for row in replay} & conflicts.keys()
    assert {row.chosen.level for row in replay} == {0}
    for row in mined:
        known = conflicts[row.id]
        assert (row.origin, known.decision) == ("mined", "model wrong")
        assert (known.model, known.chosen) == (row.rejected, row.chosen)
        for said in (known.chosen_first, known.model_first):
            assert said.sides_with == "chosen"
            assert said.raw
    for row in conflicts.values():
        trace = pairs[row.id]
        assert (row.question, row.image, row.thinking, row.answer) == (
            (trace.question, trace.image, trace.thinking, trace.answer)
        )
        assert row.thinking


def test_what_is_done_is_passed_over(recipe, folder):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    assert len(before) == 4
    said = run(recipe)
    assert "is done already" in said
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")} == before


def test_the_card_has_every_stage_and_subset(folder):
    tables = card([folder, folder])
    for words in (
        "| base",
        "| ogdpo",
        "hard negatives",
        "macro-F1 on held-out",
        "judged right on prefixes",
        "run 1",
        "sft − base",
    ):
        assert words in tables, words


def test_the_last_stage_can_be_shipped(folder, tmp_path):
    shipped = shutil.copytree(SHIPPED, tmp_path / "nano")
    assert "model.safetensors" in ship(folder, shipped)
    assert (shipped / "model.safetensors").read_bytes() == (folder / "ogdpo" / "model.safetensors").read_bytes()
    assert {path.name for path in shipped.iterdir()} == {path.name for path in SHIPPED.iterdir()}


def test_a_part_can_be_begun_anew(recipe, folder):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    run(recipe, "--again-from", "ogdpo")
    changed = {path.parent.name for path, made in before.items() if path.stat().st_mtime_ns != made}
    assert changed == {"ogdpo"}
    process = start(recipe, "--again-from", "nothing")
    assert "expected one of corpus, base, sft" in " ".join(process.communicate()[1].split())


@pytest.mark.slow
def test_a_run_that_is_killed_at_every_step_ends_with_the_same_weights(folder, tmp_path):
    recipe = small_recipe(tmp_path)
    for step in STEPS:
        process = start(recipe)
        while process.poll() is None and step not in manifests(tmp_path / "run"):
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    run(recipe)
    for path in folder.rglob("*.safetensors"):
        same = tmp_path / "run" / path.relative_to(folder)
        assert same.read_bytes() == path.read_bytes(), path
