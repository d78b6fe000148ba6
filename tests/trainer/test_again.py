"""``--again-from`` of a run that is killed: what was made again isn't made twice, and what is still to be made is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl", reason="the extra `train` isn't installed")

from guardtrace_trainer import run_report
from guardtrace_trainer.again import Part, begin_again
from guardtrace_trainer.recipe import Recipe
from guardtrace_trainer.run import Runner
from guardtrace_trainer.stages import dpo, mine, sft
from guardtrace_trainer.steps import Step, StepError

ENDPOINT = {"name": "m", "base_url": "http://127.0.0.1:1/v1", "model": "m"}
STAGES = ["sft", "dpo", "mine", "ogdpo", "evaluation"]


class Stages:
    """In the place of the real ones: each is a step whose result is another one each time. ``killed`` is the one in
    which the next run ends."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[str] = []
        self.killed: str | None = None
        for module, name in ((sft, "sft"), (dpo, "dpo"), (dpo, "ogdpo"), (mine, "mine")):
            monkeypatch.setattr(module, f"run_{name}", self.stage(name))
        monkeypatch.setattr(run_report, "evaluate_run", self.evaluate)
        monkeypatch.setattr(Runner, "_label", lambda _: None)

    def stage(self, name: str) -> Any:
        def run(settings: Any, *, base: str, data: list[Path], out: Path, **_: Any) -> Path:
            before = [Path(base) / "weights"] if Path(base).is_dir() else []
            self.make(name, out, [*data, *before], settings.model_dump(mode="json"))
            return out / "mined.jsonl" if name == "mine" else out

        return run

    def evaluate(self, recipe: Recipe, checkpoints: dict[str, Path], *_: Any) -> Path:
        folder = recipe.folder / "evaluation" / "corpus"
        self.make("evaluation", folder, [Path(checkpoints["ogdpo"]) / "weights"], {})
        return folder

    def make(self, name: str, out: Path, inputs: list[Path], settings: dict[str, Any]) -> None:
        step = Step(out, name, inputs=inputs, settings=settings)
        if step.done:
            return
        self.made.append(name)
        if name == self.killed:
            raise KeyboardInterrupt
        (out / "weights").write_text(str(len(self.made)))
        (out / "mined.jsonl").write_text(str(len(self.made)))
        step.made([out / "weights", out / "mined.jsonl"])


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> Stages:
    return Stages(monkeypatch)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    corpus = tmp_path / "run" / "corpus"
    corpus.mkdir(parents=True)
    for name in ("sft.jsonl", "pairs.jsonl", "expert_pairs.jsonl"):
        (corpus / name).write_text(name)
    judges = [{**ENDPOINT, "name": name} for name in "abc"]
    return Recipe.model_validate(
        {
            "version": 1,
            "folder": tmp_path / "run",
            "base": "builtin:nano",
            "corpus": {
                "sources": [{"name": "s", "files": ["queries.jsonl"]}],
                "models": {"models": [ENDPOINT]},
                "jury": {"judges": judges},
            },
            "sft": {},
            "dpo": {},
            "mine": {"oracle": ENDPOINT},
            "ogdpo": {},
        }
    )


def run(recipe: Recipe, stages: Stages, again_from: Part | None = None, killed: str | None = None) -> list[str]:
    """What was made, or begun."""
    stages.killed, stages.made = killed, []
    runner = Runner(recipe, recipe.folder.parent / "recipe.yaml", lambda _: None, again_from)
    if killed is None:
        runner.run()
    else:
        with pytest.raises(KeyboardInterrupt):
            runner.run()
    return stages.made


@pytest.mark.parametrize("option", ["sft", None])
@pytest.mark.parametrize("killed", STAGES)
def test_a_killed_again_goes_on_with_the_option_and_without(recipe, stages, killed, option):
    run(recipe, stages)
    at = STAGES.index(killed)
    assert run(recipe, stages, "sft", killed) == STAGES[: at + 1]
    assert run(recipe, stages, option) == STAGES[at:]
    assert run(recipe, stages) == []
    assert run(recipe, stages, "dpo") == STAGES[1:]
    assert run(recipe, stages, "dpo") == STAGES[1:]


def test_a_killed_again_of_a_folder_that_never_came_so_far(recipe, stages):
    run(recipe, stages, killed="dpo")
    run(recipe, stages, "sft", "mine")
    assert run(recipe, stages, "sft") == STAGES[2:]


def test_another_recipe_or_part_begins_another_again(recipe, stages):
    run(recipe, stages)
    run(recipe, stages, "sft", "dpo")
    other = recipe.model_copy(update={"sft": recipe.sft.model_copy(update={"batch_size": 4})})
    with pytest.raises(StepError, match=r"sft was begun or done with other settings \(batch_size\)"):
        run(other, stages)
    assert run(other, stages, "sft", "dpo") == STAGES[:2]
    assert run(other, stages, "mine") == STAGES[1:]


def test_a_folder_that_goes_on_says_how_to_begin_anew(recipe):
    said: list[str] = []
    begin_again(recipe, "sft", said.append)
    assert said == []
    begin_again(recipe, "sft", said.append)
    path = recipe.folder / "again.json"
    assert said == [f"again from sft: goes on where it was interrupted; to begin it anew, remove {path}"]
    path.write_text("{")
    begin_again(recipe, "sft", said.append)
    assert len(said) == 1
