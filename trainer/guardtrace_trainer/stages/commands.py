"""The commands ``sft``, ``dpo``, ``mine`` and ``ogdpo``: their settings are a recipe's section of that name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeVar

import typer
import yaml
from pydantic import BaseModel, ValidationError

from guardtrace_proxy.policy.yaml_file import BadYaml, YamlFile, read_yaml
from guardtrace_trainer.plainly import failing_plainly
from guardtrace_trainer.stages.settings import DpoSettings, MineSettings, SftSettings
from guardtrace_trainer.terminal import log

app = typer.Typer(help="The three training stages, and the mining between the last two.", no_args_is_help=True)
AnySettings = TypeVar("AnySettings", bound=BaseModel)

Base = Annotated[str, typer.Option(help="The checkpoint to start from: builtin:nano, a folder or a hub id.")]
Out = Annotated[Path, typer.Option(help="Folder that this stage fills.")]
Recipe = Annotated[Path | None, typer.Option(help="YAML file; its section named as the stage holds the settings.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="NAME=VALUE, above the recipe: learning_rate=2e-5.")]
Corpus = Annotated[Path | None, typer.Option(help="Folder of the rows' images. Default: that of their file.")]
Seed = Annotated[int, typer.Option(help="The same seed gives the same model on the same machine.")]
Again = Annotated[bool, typer.Option(help="Begin anew where the folder holds another run.")]


@app.command()
def sft(
    base: Base,
    data: Annotated[list[Path], typer.Option(help="sft.jsonl; may be given several times.")],
    out: Out,
    recipe: Recipe = None,
    set: Set = None,
    corpus: Corpus = None,
    seed: Seed = 0,
    again: Again = False,
) -> None:
    """Stage 1: learn to write the annotations that all judges agree on."""
    settings = stage_settings(SftSettings, "sft", recipe, set or [])
    from guardtrace_trainer.stages.sft import run_sft

    with failing_plainly():
        run_sft(settings, base=base, data=data, out=out, seed=seed, log=log, corpus=corpus, again=again)


@app.command()
def dpo(
    base: Base,
    data: Annotated[list[Path], typer.Option(help="pairs.jsonl; may be given several times.")],
    out: Out,
    recipe: Recipe = None,
    set: Set = None,
    corpus: Corpus = None,
    seed: Seed = 0,
    again: Again = False,
) -> None:
    """Stage 2: prefer the majority's annotation, against the frozen SFT model that --base names."""
    settings = stage_settings(DpoSettings, "dpo", recipe, set or [])
    from guardtrace_trainer.stages.dpo import run_dpo

    with failing_plainly():
        run_dpo(settings, base=base, data=data, out=out, seed=seed, log=log, corpus=corpus, again=again)


@app.command()
def mine(
    base: Base,
    data: Annotated[list[Path], typer.Option(help="What the DPO model was trained on; may be given several times.")],
    out: Out,
    recipe: Recipe = None,
    set: Set = None,
    corpus: Corpus = None,
    seed: Annotated[int, typer.Option(help="Picks what is replayed.")] = 0,
    again: Again = False,
) -> None:
    """Have the DPO model judge its training set again, and an oracle decide where it disagrees."""
    settings = stage_settings(MineSettings, "mine", recipe, set or [])
    from guardtrace_trainer.stages.mine import run_mine

    with failing_plainly():
        run_mine(settings, base=base, data=data, out=out, seed=seed, log=log, corpus=corpus, again=again)


@app.command()
def ogdpo(
    base: Base,
    data: Annotated[
        list[Path], typer.Option(help="mined.jsonl, expert_pairs.jsonl and, if any, replay.jsonl, each with --data.")
    ],
    out: Out,
    recipe: Recipe = None,
    set: Set = None,
    corpus: Corpus = None,
    seed: Seed = 0,
    again: Again = False,
) -> None:
    """Stage 3: as dpo, on mined and expert pairs, against the frozen DPO model that --base names."""
    settings = stage_settings(DpoSettings, "ogdpo", recipe, set or [])
    from guardtrace_trainer.stages.dpo import run_ogdpo

    with failing_plainly():
        run_ogdpo(settings, base=base, data=data, out=out, seed=seed, log=log, corpus=corpus, again=again)


def stage_settings(kind: type[AnySettings], section: str, recipe: Path | None, overrides: list[str]) -> AnySettings:
    """A stage's settings from its section of a recipe, and NAME=VALUE above them.

    Raises:
        typer.BadParameter: with each setting that can't be used and its place.
    """
    file = YamlFile(Path("--set"), {section: {}}, {})
    if recipe is not None:
        try:
            file = read_yaml(recipe)
        except BadYaml as error:
            raise typer.BadParameter(str(error)) from error
    values = file.content.get(section)
    if not isinstance(values, dict):
        raise typer.BadParameter(f"{recipe} has no section {section}")
    for override in overrides:
        name, equals, value = override.partition("=")
        if not equals:
            raise typer.BadParameter(f"--set {override}: expected NAME=VALUE")
        try:
            values = {**values, name: yaml.safe_load(value)}
        except (yaml.YAMLError, ValueError) as error:  # a date that is none is a ValueError
            raise typer.BadParameter(
                f"--set {override}: {value!r} is no YAML; put what holds spaces or brackets in quotes: "
                "--set 'lora={rank: 64, alpha: 128}'"
            ) from error
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        found = [file.problem(".".join([section, *map(str, one["loc"])]), one["msg"]) for one in error.errors()]
        raise typer.BadParameter("\n".join(map(str, found))) from error
