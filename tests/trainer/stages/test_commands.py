"""The command line, and the recipes that ship."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

from guardtrace_trainer.stages.commands import app, stage_settings
from guardtrace_trainer.stages.settings import DpoSettings, MineSettings, SftSettings

RECIPES = Path(__file__).parents[3] / "trainer" / "recipes"
KINDS = {"sft": SftSettings, "dpo": DpoSettings, "mine": MineSettings, "ogdpo": DpoSettings}


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("guardtrace-3b*.yaml")), ids=lambda path: path.stem)
def test_the_recipes_for_gpus_can_be_read(recipe):
    read = {section: stage_settings(kind, section, recipe, []) for section, kind in KINDS.items()}
    for section in ("sft", "dpo", "ogdpo"):
        rows = read[section].batch_size * read[section].gradient_accumulation
        assert rows * (1 if "one-gpu" in recipe.stem else 8) == 64
    assert read["ogdpo"].save_dtype == "bfloat16"


def test_the_sharding_names_the_layers_of_the_model():
    import transformers.models.qwen2_5_vl.modeling_qwen2_5_vl as modeling

    config = yaml.safe_load((RECIPES / "fsdp.yaml").read_text("utf-8"))
    wrapped = config["fsdp_config"]["fsdp_transformer_layer_cls_to_wrap"].split(",")
    for name in wrapped:
        assert hasattr(modeling, name)
    tower = modeling.Qwen2_5_VisionTransformerPretrainedModel
    assert {"Qwen2_5_VLVisionBlock", tower.__name__}.isdisjoint(wrapped)  # only processes with an image enter it


def test_defaults_reproduce_the_paper_where_it_says_something():
    assert SftSettings().bare_share == 0
    assert DpoSettings().sft_weight == 0


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("sft: {learning_rat: 1}", r"recipe\.yaml:1: sft\.learning_rat: Extra inputs"),
        ("sft:\n  epochs: -1", r"recipe\.yaml:2: sft\.epochs: .*greater than 0"),
        ("sft: {bare_share: 1.0}", r"sft\.bare_share: .*less than 1"),
        ("sft: {report_to: [all]}", r"sft\.report_to: .*name the trackers"),
        ("sft: {lora: {rank: 8}, freeze_embeddings: true}", "frozen anyway"),
        ("sft: {lora: {rank: 8}, freeze_layers: 1}", "adapters go into all layers"),
        ("dpo: {}", "has no section sft"),
        ("sft: {epochs: 1, epochs: 2}", "occurs twice"),
        ("[1]", "expected keys and values"),
    ],
)
def test_what_is_wrong_with_a_recipe_is_said_with_its_place(tmp_path, text, problem):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text, "utf-8")
    with pytest.raises(typer.BadParameter) as caught:
        stage_settings(SftSettings, "sft", recipe, [])
    assert re.search(problem, str(caught.value))


def test_single_settings_stand_above_the_recipe(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("dpo: {beta: 0.2, batch_size: 4}", "utf-8")
    settings = stage_settings(DpoSettings, "dpo", recipe, ["beta=0.5", "learning_rate=2e-6", "lora={rank: 4}"])
    assert (settings.beta, settings.batch_size, settings.learning_rate) == (0.5, 4, 2e-6)
    assert settings.lora is not None
    assert stage_settings(DpoSettings, "dpo", None, []) == DpoSettings()
    with pytest.raises(typer.BadParameter, match="expected NAME=VALUE"):
        stage_settings(DpoSettings, "dpo", None, ["beta"])


@pytest.mark.parametrize("broken", ["lora={rank:", "beta=2024-13-45"])
def test_a_setting_that_is_no_yaml_is_told(broken):
    with pytest.raises(typer.BadParameter, match=r"is no YAML; put what holds spaces or brackets in quotes"):
        stage_settings(DpoSettings, "dpo", None, [broken])


def test_the_stages_follow_one_another_on_the_command_line(small, corpus, tmp_path):
    few = ["--set", "max_steps=1", "--set", "batch_size=2"]

    def run(*arguments: object) -> str:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.output
        return result.output

    pairs = corpus / "pairs.jsonl"
    run("sft", "--base", small, "--data", corpus / "sft.jsonl", "--out", tmp_path / "sft", *few)
    run("dpo", "--base", tmp_path / "sft", "--data", pairs, "--out", tmp_path / "dpo", *few)
    run("ogdpo", "--base", tmp_path / "dpo", "--data", pairs, "--out", tmp_path / "ogdpo", "--seed", 1, *few)
    assert (tmp_path / "ogdpo" / "model.safetensors").exists()
    again = CliRunner().invoke(
        app, ["dpo", "--base", str(small), "--data", str(pairs), "--out", str(tmp_path / "dpo"), *few]
    )
    assert again.exit_code == 1
    assert "give --again, or run's --again-from, to begin anew" in again.output
