"""The command, over real HTTP and with the embedded auditor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

pytest.importorskip("sklearn", reason="the extra `train` isn't installed")

from guardtrace_trainer.evaluation import commands
from guardtrace_trainer.evaluation.judged import Judged
from guardtrace_trainer.rows import read_rows
from tests.trainer.evaluation.serving import Served, auditor_says, completion, row, text_of, write_image, write_qta

LEVELS = (0.0, 0.0, 0.5, 1.0)
app = typer.Typer(pretty_exceptions_enable=False)
app.command()(commands.evaluate)
app.command()(commands.compare)


def run(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def evaluated(*args: object) -> dict[str, Any]:
    result = run("evaluate", "--json", *args)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def refused(*args: object) -> str:
    result = run("evaluate", *args)
    assert result.exit_code == 1, result.output
    return result.stderr.replace("\n", " ")


def by_thinking(text: str) -> str:
    """The level that the thinking names."""
    return text.partition("This is level ")[2].split(".  ")[0].split(". ")[0]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Sixteen items, four of each of LEVELS, half of them dev, one with an image."""
    write_image(tmp_path / "set" / "a.png")
    rows = [row(n, LEVELS[n % 4], half="dev" if n < 8 else "test") for n in range(16)]
    rows[3]["image"] = "a.png"
    return write_qta(tmp_path / "set", rows)


def test_an_auditor_over_http(data: Path) -> None:
    with Served(auditor_says(lambda text: "0" if "Question 6?" in text else by_thinking(text))) as served:
        found = evaluated("--auditor", "guard-3b", "--base-url", served.url, "--data", data)
    assert len(served.asked) == 16
    assert sum("image_url" in json.dumps(body) and "Question 3?" in text_of(body) for body in served.bodies) == 1
    # one of four items at 0.5 was judged safe: F1 16/17, 6/7, 1
    assert (found["n"], found["no_verdict"], found["auditor"], found["depth"]) == (16, 0, "guard-3b", "annotate")
    assert found["macro_f1"] == pytest.approx((16 / 17 + 6 / 7 + 1) / 3, abs=1e-4)
    assert found["binary_f1"] == pytest.approx(14 / 15, abs=1e-4)
    assert found["accuracy"] == pytest.approx(15 / 16, abs=1e-4)
    assert found["depths"]["annotate"]["confusion"] == [[8, 0, 0, 0], [1, 3, 0, 0], [0, 0, 4, 0]]
    low, high = found["depths"]["annotate"]["intervals"]["accuracy"]
    assert 0.7 < low < high == 1.0


def test_halves_and_limits(data: Path) -> None:
    with Served(auditor_says(by_thinking)) as served:
        where = ("--auditor", "m", "--base-url", served.url, "--data", data)
        assert evaluated(*where, "--half", "dev")["n"] == 8
        assert evaluated(*where, "--half", "test", "--limit", 4)["n"] == 4
    asked = {n for n in range(16) if any(f"Question {n}?" in text for text in served.asked[8:])}
    assert asked == {8, 10, 12, 14}


def test_unreadable_replies_are_no_verdict_and_wrong(data: Path) -> None:
    with Served(auditor_says(lambda text: "maybe" if "Question 3?" in text else by_thinking(text))) as served:
        found = evaluated("--auditor", "m", "--base-url", served.url, "--data", data)
    assert found["no_verdict"] == 1
    assert found["depths"]["annotate"]["failures"] == {"unreadable": 1}
    assert found["recall"] == pytest.approx(7 / 8)


@pytest.mark.parametrize(("status", "told"), [(0, "can't be reached"), (401, "HTTP status 401: look at api_key_env")])
def test_an_interrupted_evaluation_pays_nothing_twice(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, told: str
) -> None:
    monkeypatch.setattr("guardtrace_trainer.evaluation.auditors.FIRST_PAUSE_SECONDS", 0.001)
    out = tmp_path / "results" / "m.json"
    knows, paid = auditor_says(by_thinking), 0
    last = 6

    def answer(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        nonlocal paid
        if path.endswith("/chat/completions"):
            if paid == last:
                return status, {}
            paid += "Question " in text_of(body)
        return knows(path, body)

    with Served(answer) as served:
        where = ("--auditor", "m", "--base-url", served.url, "--data", data, "--out", out, "--concurrency", 1)
        assert told in refused(*where)
        assert not out.exists()
        assert "begun or done with other settings (analyses)" in refused(*where, "--analyses")
        last = -1
        found = evaluated(*where)
        assert paid == 16
        assert evaluated(*where) == found
        assert paid == 16
        evaluated(*where, "--again")
        assert paid == 32
    rows = read_rows(out.with_name("m.verdicts.jsonl"), Judged)
    assert [r.outcomes["annotate"].level for r in rows] == [LEVELS[n % 4] for n in range(16)]
    assert all(r.outcomes["annotate"].said is None for r in rows)
    assert json.loads(out.read_text("utf-8")).keys() == found.keys()


def test_a_guard_with_two_levels_gives_binary_figures_only(data: Path, tmp_path: Path) -> None:
    def answer(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        level = by_thinking(body["messages"][1]["content"])
        return 200, completion("safe" if level == "0" else "unsafe\nS2")

    out = tmp_path / "llama.json"
    with Served(answer) as served:
        found = evaluated("--guard", "llama-guard-4", "--base-url", served.url, "--data", data, "--out", out)
    assert (found["binary_f1"], found["macro_f1"], found["accuracy"], found["binary_accuracy"]) == (
        1.0,
        None,
        None,
        1.0,
    )
    assert (found["guard"], found["auditor"], found["depth"]) == (
        "llama-guard-4",
        "meta-llama/Llama-Guard-4-12B",
        "guard",
    )
    assert "macro_f1" not in found["depths"]["guard"]["intervals"]
    assert read_rows(tmp_path / "llama.verdicts.jsonl", Judged)[3].outcomes["guard"].scores == {"S2": 1.0}


def test_images_that_a_guard_is_not_shown_are_counted(data: Path, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("Audit.")
    answer = auditor_says(lambda text: by_thinking(text))
    where = ("--guard", "reasoningshield", "--prompt", tmp_path / "prompt.txt", "--data", data)
    with Served(answer) as served:
        found = evaluated(*where, "--base-url", served.url)
    assert (found["macro_f1"], found["images_not_shown"]) == (1.0, 1)


def test_a_server_that_refuses_everything_stops_it(data: Path) -> None:
    with Served(lambda path, body: (400, {"error": {"message": "no such model"}})) as served:
        message = refused("--guard", "llama-guard-4", "--base-url", served.url, "--data", data, "--concurrency", 1)
    assert "no verdict on any of 8 items; the last one's failure: refused: llama-guard-4: HTTP 400" in message
    assert len(served.requests) == 8


def test_a_key_that_expires_midway_stops_it_and_counts_nothing_as_wrong(data: Path, tmp_path: Path) -> None:
    valid = [True] * 3 + [False] + [True] * 13

    def answer(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        return (200, completion("safe")) if valid.pop(0) else (401, {"error": {"message": "the key has expired"}})

    with Served(answer) as served:
        guard = ("--guard", "llama-guard-4", "--base-url", served.url, "--data", data, "--concurrency", 1)
        message = refused(*guard, "--out", tmp_path / "result.json")
        assert "llama-guard-4: HTTP 401" in message
        assert "run the same command again" in message
        assert not (tmp_path / "result.json").exists()
        assert evaluated(*guard, "--out", tmp_path / "result.json")["no_verdict"] == 0
    assert len(served.requests) == 16 + 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "name an auditor, or a guard"),
        (("--guard", "llama"), "--guard: there is no guard 'llama': expected one of openai-moderation"),
        (("--guard", "llama-guard-4"), "a guard is asked over HTTP"),
        (("--guard", "llm-judge", "--base-url", "http://x/v1"), "name the model that is to be the llm-judge"),
        (("--auditor", "m", "--depth", "both"), "--depth: Input should be 'annotate', 'label', 'cascade' or 'all'"),
        (("--auditor", "m", "--half", "third"), "--half: Input should be 'dev' or 'test'"),
        (("--auditor", "m", "--limit", "0"), "--limit: Input should be greater than or equal to 1"),
        (("--auditor", "m", "--request", '{"seed": 1}'), "only guards take further request fields"),
        (("--auditor", "m", "--request", "[]"), "--request: expected a JSON object"),
        (("--auditor", "m", "--backend", "openai"), "the openai backend needs the URL of a server"),
        (("--auditor", "m", "--base-url", "http://x/v1", "--api-key-env", "NO_SUCH_KEY"), "NO_SUCH_KEY holds no key"),
        (("--auditor", "m", "--data", "/nowhere"), "/nowhere: expected a folder with qta.jsonl"),
    ],
)
def test_what_can_not_be_is_said_in_one_line(data: Path, args: tuple[str, ...], message: str) -> None:
    assert message in refused(*args, "--data", data)


def test_a_server_without_probabilities_can_only_annotate(data: Path) -> None:
    with Served(auditor_says(by_thinking)) as served:
        message = refused("--auditor", "m", "--base-url", served.url, "--data", data, "--depth", "all")
    assert "label and cascade need a server that gives the labels' probabilities" in message


def test_the_same_items_twice_are_refused(data: Path) -> None:
    assert "'set/item-000' comes twice" in refused("--auditor", "m", "--data", data, "--data", data)


def test_the_embedded_auditor_at_all_depths(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the extra `local` isn't installed")
    handwritten = Path(__file__).parents[3] / "tests" / "data" / "handwritten"
    out = tmp_path / "nano.json"
    where = ("--auditor", "builtin:nano", "--data", handwritten, "--half", "dev")
    found = evaluated(*where, "--limit", 3, "--depth", "all", "--out", out)
    assert found["n"] == 3
    assert {"macro_f1", "binary_f1", "accuracy"} <= found.keys()
    assert list(found["depths"]) == ["annotate", "label", "cascade"]
    assert found["label_tier"]["n"] == 3
    assert found["label_tier"]["escalate_at"] == found["escalate_at"]
    rows = read_rows(tmp_path / "nano.verdicts.jsonl", Judged)
    for outcomes in (r.outcomes for r in rows):
        risk = outcomes["label"].risk
        assert risk is not None
        escalated = risk >= found["escalate_at"]
        assert outcomes["cascade"].escalated is escalated
        assert outcomes["cascade"].level == outcomes["annotate" if escalated else "label"].level
    manifest = json.loads((tmp_path / "nano.evaluate.manifest.json").read_text("utf-8"))
    assert any(name.endswith("model.safetensors") for name in manifest["inputs"])
    shown = run("evaluate", *where, "--limit", 3, "--depth", "all", "--out", out)
    assert "| annotate | all" in shown.stdout
    assert "label at escalate_at" in shown.stdout
