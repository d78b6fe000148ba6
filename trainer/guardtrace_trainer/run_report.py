"""The end of ``guardtrace-train run``: base and stages evaluated on the same sets, side by side in one report."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from guardtrace_proxy.policy.loading import find_policy, load_policy
from guardtrace_proxy.policy.schema import Policy
from guardtrace_trainer.evaluation.data import HARD_NEGATIVES
from guardtrace_trainer.evaluation.evaluate import Plan, evaluate, load
from guardtrace_trainer.evaluation.machine import machine
from guardtrace_trainer.evaluation.report import Report, percent
from guardtrace_trainer.evaluation.stream_evaluate import StreamSettings, stream_evaluate
from guardtrace_trainer.evaluation.stream_report import stream_lines
from guardtrace_trainer.evaluation.table import difference_cells, paired, read_result
from guardtrace_trainer.recipe import DataSet, Recipe
from guardtrace_trainer.steps import Manifest, StepError, versions

Log = Callable[[str], None]
REPORT = "report.html"
BASE = "base"
DEPTH = "annotate"
NAMES = {"macro_f1": "macro-F1", "accuracy": "judged right"}
DIFFERENCES = ("difference", "on", "points", "95 % interval")
SHOWN = ("macro_f1", "binary_f1", "precision", "recall", "false_alarms", "no_verdict")


def check_inputs(recipe: Recipe, data: Sequence[DataSet], streaming: Sequence[DataSet]) -> None:
    """See to it that the sets and the policy can be read, before anything is trained.

    Raises:
        RowError, SettingsError, StepError: with what to do.
    """
    for one in (*data, *streaming):
        if not one.path.resolve().is_relative_to(recipe.folder.resolve()):  # else the run itself may make it
            load(Plan(auditor=recipe.base or BASE, half=one.half), [one.path])
    if streaming or recipe.nano is not None:
        _policy(recipe)


def evaluate_run(
    recipe: Recipe,
    checkpoints: Mapping[str, str | Path],
    data: Sequence[DataSet],
    streaming: Sequence[DataSet],
    log: Log,
) -> Path:
    """Evaluate each checkpoint on each set, the last one on streams, and write the report; returns its path.

    ``checkpoints`` come in the order of the stages, ``base`` first.

    Raises:
        RowError, StepError, AuditorError, EvaluationStopped: with what to do.
    """
    folder = recipe.folder / "evaluation"
    last = list(checkpoints)[-1]
    results: dict[Path, dict[str, Path]] = {}
    for one in data:
        path = one.path
        for name, checkpoint in checkpoints.items():
            log(f"evaluation: {name} on {path.name}")
            plan = Plan(
                auditor=str(checkpoint),
                half=one.half,
                annotate_max_tokens=recipe.evaluation.annotate_max_tokens,
                concurrency=recipe.evaluation.concurrency,
                depth="all",
                may_be_mute=name == BASE or recipe.evaluation.may_be_mute,  # the base was never taught to judge
            )
            out = folder / path.name / f"{name}.json"
            evaluate(plan, [path], out, log=log)
            results.setdefault(path, {})[name] = out
    streamed = {}
    if streaming:
        log(f"evaluation: {last} on streams")
        streamed = {
            one.path.name: _stream(recipe, checkpoints[last], one, folder / "streaming" / one.path.name, log)
            for one in streaming
        }
    report = recipe.folder / REPORT
    report.write_text(_report(recipe, results, streamed), "utf-8")
    log(f"report: {report}")
    return report


def _stream(recipe: Recipe, checkpoint: str | Path, data: DataSet, out: Path, log: Log) -> dict[str, Any]:
    settings = recipe.evaluation
    who = Plan(
        auditor=str(checkpoint),
        depth="cascade",
        half=data.half,
        annotate_max_tokens=settings.annotate_max_tokens,
        concurrency=settings.concurrency,
    )
    streams = StreamSettings(who=who, policy=_policy(recipe), policy_name=settings.policy)
    return stream_evaluate(streams, [data.path], out, log=log)


def _policy(recipe: Recipe) -> Policy:
    name = recipe.evaluation.policy
    path = find_policy(name, Path("policies"))
    if path is None:
        raise StepError(f"evaluation.policy: there is no policies/{name}.yaml here and no such preset")
    return load_policy(path).policy


def _report(recipe: Recipe, results: Mapping[Path, Mapping[str, Path]], streamed: Mapping[str, Any]) -> str:
    report = Report(f"Recipe {recipe.folder.name}, seed {recipe.seed}")
    report.settings({"machine": machine(), **versions()})
    report.heading("Steps")
    report.table(("step", "seconds", "counts"), _steps(recipe.folder))
    if not results:
        report.note("No stage was evaluated: the corpus has no test split (test_share), and evaluation.data is empty.")
    for data, by_stage in results.items():
        found = {name: json.loads(path.read_text("utf-8")) for name, path in by_stage.items()}
        report.heading(f"Stages on {data.name}")
        report.note(
            "Depth annotate, with 95 % intervals of the bootstrap; what comes of one trace or query is drawn as one. "
            "No verdict counts as wrong."
        )
        report.table(("stage", "n", *SHOWN), [_overall(name, result) for name, result in found.items()])
        report.table(("macro-F1 by subset", *found), _by_subset(found))
        report.table(DIFFERENCES, differences(by_stage))
        last = list(found)[-1]
        report.heading(f"Label tier of {last} on {data.name}")
        report.settings(found[last]["label_tier"])
    for name, figures in streamed.items():
        report.heading(f"Streams of {name}, last stage")
        report.table(("figure", ""), stream_lines(figures))
    return report.html()


def _steps(folder: Path) -> Iterable[tuple[str, float | None, str]]:
    for path in sorted(folder.rglob("*.manifest.json"), key=lambda path: path.stat().st_mtime):
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
        counts = {name: value for name, value in manifest.counts.items() if name != "losses"}
        name = f"{path.parent.relative_to(folder).as_posix()}/{manifest.step}".removeprefix("./")
        yield name, manifest.seconds, json.dumps(counts, ensure_ascii=False)


def _overall(name: str, result: Mapping[str, Any]) -> list[Any]:
    found = result["depths"][DEPTH]
    intervals = found["intervals"]
    shown = [percent(found[figure], intervals.get(figure)) for figure in SHOWN if figure != "no_verdict"]
    return [name, found["n"], *shown, found["no_verdict"]]


def _by_subset(results: Mapping[str, Any]) -> Iterable[list[str]]:
    parts = {name: result["depths"][DEPTH]["by_subset"] for name, result in results.items()}
    subsets = dict.fromkeys(subset for part in parts.values() for subset in part)
    for subset in subsets:
        shown = [part[subset] for part in parts.values()]
        yield [f"{subset} ({shown[0]['n']})", *map(_macro_or_accuracy, shown)]


def _macro_or_accuracy(found: Mapping[str, Any]) -> str:
    """With its interval. Sets of safe prefixes have one level only, so they have a share."""
    name = main_figure(found)
    return percent(found[name], found["intervals"].get(name)) + (" right" if name == "accuracy" else "")


def main_figure(found: Mapping[str, Any]) -> str:
    """Macro-F1; where a level never comes the share that is judged right."""
    return "accuracy" if found["macro_f1"] is None else "macro_f1"


def differences(by_stage: Mapping[str, Path]) -> Iterator[tuple[str, str, str, str]]:
    """Each stage against the one before, paired by items: what, on which subset, points, their 95 % interval. The whole
    set, and beside it its hard negatives."""
    for before, after in pairwise(by_stage):
        whole = read_result(by_stage[after])["depths"][DEPTH]
        parts: dict[str | None, Mapping[str, Any]] = {None: whole}
        if HARD_NEGATIVES in whole["by_subset"]:
            parts[HARD_NEGATIVES] = whole["by_subset"][HARD_NEGATIVES]
        for subset, part in parts.items():
            figure = main_figure(part)
            found = paired(by_stage[before], by_stage[after], DEPTH, DEPTH, subset)[figure]
            points, interval = difference_cells(found)
            yield f"{after} − {before}, {NAMES[figure]}", subset or "all", points, interval
