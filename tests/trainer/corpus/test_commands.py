"""The commands, as they are typed."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from guardtrace_trainer.corpus.commands import app


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


def test_from_a_file_to_requests(jsonl, photos, tmp_path):
    path = jsonl({"prompt": "Bake bread", "kind": "Theirs"}, {"prompt": "bake BREAD!", "kind": "other"})
    options = ("--category-field", "kind", "--category-as", "Theirs=misleading advice", "--test-share", 0)
    assert run("import", path, "--out", tmp_path / "c", "--source", "mine", *options) == (
        0,
        "read 2, kept 1, duplicates 1, train 1\n",
        "",
    )
    code, out, _ = run("expand", tmp_path / "c", "--irrelevant-images", photos, "--per-query", 2)
    assert (code, out.split(",")[0]) == (0, "requests 2")
    code, out, _ = run("stats", tmp_path / "c", "--json")
    assert json.loads(out)["queries"]["by_category"] == {"misleading advice": {"train": 1, "test": 0}}
    code, out, _ = run("stats", tmp_path / "c")
    assert "misleading advice" in out


def test_s_eval_by_name(jsonl, tmp_path):
    path = jsonl({"prompt": "Bake bread", "risk_type": "Hate_Speech", "traceid": "1", "ext": "{}"})
    assert run("import", path, "--out", tmp_path / "c", "--source", "s-eval", "--format", "s-eval")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("import", "none.jsonl", "--out", "C", "--source", "x"), "guardtrace-train: none.jsonl: can't be read"),
        (("import", "a.jsonl", "--out", "C", "--source", "x", "--category-as", "a=b"), "expected THEIRS=OURS"),
        (("import-hades", ".", "--out", "C"), "guardtrace-train: .: holds neither"),
        (("expand", "C", "--variants", "text, colour"), "--variants: expected some of text, irrelevant"),
        (("expand", "C", "--images-endpoint", "none.yaml"), "none.yaml: can't be read"),
        (("expand", "C", "--images-endpoint", "a.yaml", "--aligned-images", "b"), "not both"),
        (("stats", "C"), "holds none of queries.jsonl"),
    ],
)
def test_errors_are_one_line_and_exit_1(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, error = run(*arguments)
    assert (code, out) == (1, "")
    assert error.startswith("guardtrace-train: ")
    assert message in error
    assert error.count("\n") == 1
