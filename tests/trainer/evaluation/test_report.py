"""The commands on streams, with the embedded auditor on a few hand-written traces."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the extra `local` isn't installed")
pytest.importorskip("matplotlib", reason="the extra `train` isn't installed")

from typer.testing import CliRunner, Result

from guardtrace_proxy.auditor.calibration import read_calibration
from guardtrace_proxy.auditor.prompt import Query
from guardtrace_proxy.policy.loading import load_policy
from guardtrace_trainer.cli import app as whole
from guardtrace_trainer.evaluation import stream_evaluate as evaluating
from guardtrace_trainer.evaluation.evaluate import Plan
from guardtrace_trainer.evaluation.judged import EvaluationStopped
from guardtrace_trainer.evaluation.streaming_commands import app
from tests.trainer.evaluation.serving import Served, auditor_says
from tests.trainer.evaluation.word_auditor import WordAuditor

DATA = Path(__file__).parents[2] / "data"
HANDWRITTEN = ["--data", str(DATA / "handwritten"), "--half", "dev", "--depth", "label"]


def run(*arguments: str) -> str:
    said = CliRunner().invoke(app, [*arguments])
    assert said.exit_code == 0, said.output
    return said.stdout


def test_streams_are_evaluated_once_and_read_the_second_time(words: None, tmp_path: Path) -> None:
    command = ["stream-evaluate", *HANDWRITTEN, "--limit", "8", "--out", str(tmp_path), "--json"]
    first = json.loads(run(*command))
    assert first["streams"] == 8
    assert {path.name for path in tmp_path.iterdir()} == {
        "streaming.html",
        "streaming.json",
        "streaming.manifest.json",
        "streams.jsonl",
        "time-to-detect.png",
        "f1-by-share.png",
        "reliability.png",
        "risk.png",
    }
    made = (tmp_path / "streaming.json").stat().st_mtime_ns
    assert json.loads(run(*command))["time_to_detect"] == first["time_to_detect"]
    assert (tmp_path / "streaming.json").stat().st_mtime_ns == made
    assert "| time to detect: Hit" in run(*command[:-1])


def test_other_settings_in_the_same_folder_are_refused(words: None, tmp_path: Path) -> None:
    command = ["stream-evaluate", *HANDWRITTEN, "--limit", "1", "--out", str(tmp_path)]
    run(*command)
    other = CliRunner().invoke(app, [*command, "--policy", "strict"])
    assert other.exit_code == 1
    assert "other settings (policy, policy_name)" in other.output


def test_evaluate_streaming_is_the_same_evaluation(words: None, tmp_path: Path) -> None:
    command = [*HANDWRITTEN, "--limit", "2", "--auditor", "builtin:nano"]
    said = CliRunner().invoke(whole, ["evaluate", "--streaming", *command, "--out", str(tmp_path), "--json"])
    assert said.exit_code == 0, said.output
    assert json.loads(said.stdout)["streams"] == 2
    refused = CliRunner().invoke(whole, ["evaluate", "--streaming", *command])
    assert refused.exit_code == 1
    assert "with --out a folder" in refused.output


@pytest.mark.parametrize("option", [["--request", '{"a": 1}'], ["--analyses"]])
def test_evaluate_streaming_refuses_what_it_has_no_use_for(option: list[str], tmp_path: Path) -> None:
    command = ["evaluate", "--streaming", *HANDWRITTEN, "--auditor", "builtin:nano", "--out", str(tmp_path)]
    refused = CliRunner().invoke(whole, [*command, *option])
    assert refused.exit_code == 1
    assert f"--streaming: takes no {option[0]}" in refused.output
    assert not list(tmp_path.iterdir())


GRID = ["--first", "16", "--growth", "1", "--max", "64", "--threshold", "0.5"]


@pytest.mark.parametrize(
    ("command", "more", "report"),
    [
        (["stream-evaluate"], ["--limit", "1"], "streaming.html"),
        (["evaluate", "--streaming"], ["--limit", "1"], "streaming.html"),
        (["sweep"], ["--limit", "8", *GRID], "sweep.html"),
    ],
)
def test_a_prompt_is_the_auditors(command: list[str], more: list[str], report: str, tmp_path: Path) -> None:
    prompt = tmp_path / "own-prompt.txt"
    prompt.write_text("Judge by my rules.", "utf-8")
    with Served(auditor_says(lambda text: "0")) as served:
        who = ["--auditor", "m", "--base-url", served.url, "--prompt", str(prompt)]
        out = tmp_path / "out"
        options = [*HANDWRITTEN, *who, *more, "--depth", "annotate", "--out", str(out)]
        said = CliRunner().invoke(whole, [*command, *options])
    assert said.exit_code == 0, said.output
    assert {str(body["messages"][0]["content"]) for body in served.bodies if body["max_tokens"] > 1} == {
        "Judge by my rules."
    }
    assert "own-prompt.txt" in (out / report).read_text("utf-8")


def test_a_sweep_writes_what_the_proxy_reads(words: None, tmp_path: Path) -> None:
    grid = ["--first", "16", "--growth", "2", "--max", "64", "--threshold", "0.5", "--threshold", "0.9"]
    table = run("sweep", *HANDWRITTEN, "--limit", "8", "--out", str(tmp_path), *grid)
    assert "chosen" in table
    policy = load_policy(tmp_path / "policy.yaml").policy
    assert policy.boundary.first == 16
    calibration = read_calibration((tmp_path / "calibration.json").read_bytes(), "here")
    assert 0 < calibration.escalate_at <= 0.5
    points = json.loads((tmp_path / "sweep.json").read_text("utf-8"))["points"]
    assert len(points) == 3
    assert sum(point["chosen"] for point in points) == 1


class Dying(WordAuditor):
    """Takes ``left`` items more."""

    left = 0

    async def open(self, query: Query) -> WordAuditor:
        if not self.left:
            raise EvaluationStopped("the auditor is gone")
        self.left -= 1
        return await super().open(query)


def test_an_interrupted_sweep_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    auditor = Dying()

    @asynccontextmanager
    async def opened(plan: Plan) -> AsyncIterator[Dying]:
        yield auditor

    monkeypatch.setattr(evaluating, "opened_auditor", opened)

    def sweep(out: str, left: int) -> Result:
        auditor.left = left
        options = ["--limit", "8", "--concurrency", "1", "--out", str(tmp_path / out), *GRID]
        return CliRunner().invoke(app, ["sweep", *HANDWRITTEN, *options])

    assert sweep("whole", 16).exit_code == 0  # each of eight items once for the calibration, once for the sweep
    assert auditor.left == 0
    for left in (3, 9):
        said = sweep("parts", left)
        assert (said.exit_code, auditor.left) == (1, 0)
        assert "the auditor is gone" in said.output
    said = sweep("parts", 4)
    assert (said.exit_code, auditor.left) == (0, 0), said.output
    assert "4 of 8 streams are played already" in said.output
    whole, parts = (json.loads((tmp_path / out / "sweep.json").read_text("utf-8")) for out in ("whole", "parts"))
    assert (whole["points"], whole["audits"]) == (parts["points"], parts["audits"])
    assert not list((tmp_path / "parts").glob("*.journal"))


def test_a_sweep_on_safe_traces_alone_is_refused(words: None, tmp_path: Path) -> None:
    said = CliRunner().invoke(app, ["sweep", *HANDWRITTEN, "--limit", "6", "--out", str(tmp_path)])  # all safe
    assert said.exit_code == 1
    assert "no item is unsafe with a known onset" in said.output
    assert not (tmp_path / "policy.yaml").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--policy", "lenient"], "there is no policies/lenient.yaml here and no preset 'lenient'"),
        (["--depth", "all"], "expected annotate, label or cascade"),
        (["--depth", "deep"], "--depth: "),
        (["--tokens-per-second", "0"], "--tokens-per-second: "),
        (["--data", "nowhere"], "nowhere: expected a folder"),
    ],
)
def test_what_cant_be_done_is_said_plainly(arguments: list[str], says: str, tmp_path: Path) -> None:
    command = ["stream-evaluate", "--data", str(DATA / "handwritten"), "--out", str(tmp_path), *arguments]
    said = CliRunner().invoke(app, command)
    assert said.exit_code == 1
    assert says in said.output
