"""Recipes: those that ship are valid, and what can't be meant is refused with its place."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from guardtrace_proxy.policy.errors import SettingsError
from guardtrace_trainer.recipe import Recipe
from guardtrace_trainer.settings import read_settings

RECIPES = Path(__file__).parents[2] / "trainer" / "recipes"
NANO = RECIPES / "nano.yaml"


def changed(tmp_path: Path, **sections: object) -> Path:
    content = yaml.safe_load(NANO.read_text("utf-8"))
    for name, value in sections.items():
        content[name] = value
        if value is None:
            del content[name]
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content), "utf-8")
    return path


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_recipes_that_ship_are_valid(path):
    if "sft:" not in path.read_text("utf-8"):
        pytest.skip("settings of accelerate, no recipe")
    assert read_settings(path, Recipe).version == 1


def test_a_source_s_categories_are_mapped_to_ours(tmp_path):
    corpus = yaml.safe_load(NANO.read_text("utf-8"))["corpus"]
    source = {"name": "mine", "files": ["mine.csv"], "category_as": {"Scams": "crimes"}}
    with pytest.raises(SettingsError, match=r"category_as.*crime and illegal activities"):
        read_settings(changed(tmp_path, corpus={**corpus, "sources": [source]}), Recipe)


def test_the_small_recipes_models_are_all_served_on_its_own_port():
    recipe = read_settings(NANO, Recipe)
    assert recipe.nano is not None
    assert recipe.prefixes is not None
    asked = [*recipe.corpus.models.models, *recipe.corpus.jury.judges, recipe.mine.oracle, recipe.prefixes.judge]
    for endpoint in asked:
        assert endpoint.base_url == f"http://127.0.0.1:{recipe.nano.port}/{endpoint.model}/v1"


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"nano": None}, "give base, or nano"),
        ({"base": "builtin:nano"}, "give base, or nano"),
        ({"version": 2}, "version"),
        ({"sfft": {}}, "sfft"),
        ({"sft": {"learning_rat": 1}}, "learning_rat"),
        ({"sft": None}, "sft"),
        ({"evaluation": {"data": [{"path": "mine/corpus"}]}}, "names of their own"),
        ({"evaluation": {"data": [{"path": "mine/controls"}]}}, "names of their own"),
        ({"nano": None, "base": "builtin:nano"}, "corpus.sources"),
        ({"evaluation": {"data": [{"path": "a/qta"}, {"path": "b/qta"}]}}, "data: folders need names of their own"),
        ({"evaluation": {"streaming": [{"path": "a/qta"}, {"path": "b/qta"}]}}, "streaming: folders need names of"),
        ({"evaluation": {"streaming": [{"path": "a/streams"}]}}, "streaming: folders need names of their own"),
    ],
)
def test_what_cant_be_meant_is_refused(tmp_path, sections, message):
    with pytest.raises(SettingsError, match=message):
        read_settings(changed(tmp_path, **sections), Recipe)
