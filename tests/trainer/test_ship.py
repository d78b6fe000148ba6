"""Shipping a run's last checkpoint: a finished run's only, whole, and nothing of the old one stays."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

pytest.importorskip("trl", reason="the extra `train` isn't installed")

from guardtrace_trainer.cli import app
from guardtrace_trainer.nano import ship as shipping
from guardtrace_trainer.nano.ship import SHIPPED, ship
from guardtrace_trainer.steps import Step, StepError

FILES = {"model.safetensors": "new weights", "config.json": "{}", "guardtrace.json": '{"new": 1}'}


def trained(run: Path, stage: str = "ogdpo") -> Path:
    step = Step(run / stage, stage)
    for name, text in FILES.items():
        (run / stage / name).write_text(text, "utf-8")
    (run / stage / "training").mkdir()
    step.made([run / stage / name for name in FILES])
    return run


def evaluated(run: Path, stage: str = "ogdpo") -> Path:
    for name, weights in (("base", []), (stage, [run / stage / "model.safetensors"])):
        Step(run / "evaluation" / "held-out", f"{name}.evaluate", inputs=weights).made([])
    (run / "report.html").write_text("done", "utf-8")
    return run


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "shipped"
    folder.mkdir()
    old = {"model.safetensors": "old weights", "config.json": "{}", "calibration.json": "{}", "README.md": "card"}
    for name, text in old.items():
        (folder / name).write_text(text, "utf-8")
    return folder


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text("utf-8") for path in folder.iterdir()}


@pytest.mark.parametrize("stage", ["ogdpo", "dpo"])
def test_a_finished_run_ships(stage: str, tmp_path: Path, target: Path) -> None:
    run = evaluated(trained(tmp_path / "run", stage), stage)
    assert ship(run, target) == ["calibration.json", "guardtrace.json", "model.safetensors"]
    assert content(target) == {**FILES, "README.md": "card"}
    assert ship(run, target) == []


def test_a_run_that_isnt_finished_doesnt_ship(tmp_path: Path, target: Path) -> None:
    before, run = content(target), tmp_path / "run"

    def refused(message: str) -> None:
        with pytest.raises(StepError, match=message):
            ship(run, target)
        assert content(target) == before

    refused("this stage isn't done")
    Step(run / "ogdpo", "ogdpo")
    refused("this stage isn't done")
    trained(tmp_path / "other")
    (run / "ogdpo" / "ogdpo.manifest.json").unlink()
    (run / "ogdpo").rmdir()
    (tmp_path / "other" / "ogdpo").rename(run / "ogdpo")
    refused("isn't evaluated as it stands")
    evaluated(run)
    (run / "report.html").unlink()
    refused(r"no report\.html")
    evaluated(run)
    (run / "ogdpo" / "model.safetensors").write_text("other weights", "utf-8")
    refused(r"model\.safetensors isn't as the stage left it")
    Step(run / "ogdpo", "ogdpo", again=True).made([run / "ogdpo" / name for name in FILES])
    refused("isn't evaluated as it stands")


def test_what_is_too_large_doesnt_ship(tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = evaluated(trained(tmp_path / "run"))
    monkeypatch.setattr(shipping, "MOST_BYTES", 10)
    with pytest.raises(StepError, match="save_dtype: bfloat16"):
        ship(run, target)
    assert content(target)["model.safetensors"] == "old weights"


def test_the_command_says_what_changed(tmp_path: Path, target: Path) -> None:
    run = evaluated(trained(tmp_path / "run"))
    said = CliRunner().invoke(app, ["nano", "ship", str(run), "--to", str(target)])
    assert said.exit_code == 0, said.output
    assert "guardtrace.json, model.safetensors changed" in " ".join(said.output.split())
    refused = CliRunner().invoke(app, ["nano", "ship", str(tmp_path), "--to", str(target)])
    assert refused.exit_code == 1
    assert "isn't done" in refused.output


def test_what_ships_is_small_enough_and_where_the_proxy_looks() -> None:
    assert (SHIPPED / "model.safetensors").is_file()
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) <= shipping.MOST_BYTES
