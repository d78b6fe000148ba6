"""Traces from scripted thinking models: paid once, through crashes, failures and growth."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from guardtrace_trainer.annotation.commands import app
from guardtrace_trainer.asking import UNANSWERED_AT_FIRST, Failure, PaidReply, Question
from guardtrace_trainer.corpus.generate import Models, Plan, generate
from guardtrace_trainer.endpoints import Endpoint
from guardtrace_trainer.rows import Request, Trace, read_rows, write_rows
from guardtrace_trainer.steps import Step, StepError
from tests.trainer.corpora import request, write_requests
from tests.trainer.scripted import Said, Scripted

DIALECT = {"qwen": "closed only", "kimi": "kimi", "glm": "glm"}


def think(body: dict[str, Any], number: int) -> Said:
    """Three models, three dialects; every one thinks of the question and answers with its own name."""
    model = body["model"]
    return Said(f"{model} answers.", f"The question is {question(body)!r}.", DIALECT.get(model, "reasoning"))


def question(body: dict[str, Any]) -> str:
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else content[-1]["text"]


def plan(server: Scripted, *names: str, samples: int = 1, limit: int | None = None, **fields: Any) -> Plan:
    """``fields`` with a list go to the models, others to ``models.yaml``'s top."""
    of_model = fields.pop("of_model", {})
    styles = {"qwen": {"thinking": {"starts_open": True}}}
    models = [server.endpoint(name, **styles.get(name, {}), **of_model) for name in names or ("m",)]
    return Plan(Models.model_validate({"models": models, **fields}), samples, None, limit)


def traces(folder: Path) -> list[Trace]:
    return read_rows(folder / "traces.jsonl", Trace)


def failures(folder: Path) -> list[Failure]:
    return read_rows(folder / "traces.failed.jsonl", Failure)


@pytest.mark.parametrize("stream", [True, False])
def test_three_models_in_their_dialects(tmp_path, stream):
    requests = write_requests(tmp_path, 4)
    with Scripted(think) as server:
        manifest = generate(tmp_path, plan(server, "qwen", "kimi", "glm", of_model={"stream": stream}))
    made = traces(tmp_path)
    assert [row.id for row in made] == [f"{r.id}-{m}" for r in requests for m in ("qwen", "kimi", "glm")]
    for row in made:
        assert row.thinking == f"The question is {row.question!r}."
        assert row.answer == f"{row.model} answers."
        assert (row.finish_reason, row.prompt_tokens, row.completion_tokens) == ("stop", 11, 7)
        assert row.request_id == f"{row.query_id}-text"
    assert {name: getattr(made[-1], name) for name in Request.__struct_fields__ if name != "id"} == {
        name: getattr(requests[-1], name) for name in Request.__struct_fields__ if name != "id"
    }
    assert manifest.counts["traces"] == 12
    assert manifest.counts["models"]["glm"] == {"replies": 4, "prompt_tokens": 44, "completion_tokens": 28, "cost": 0.0}


def test_the_image_is_sent_as_the_files_own_bytes(tmp_path):
    write_requests(tmp_path, 1)
    with Scripted(think) as server:
        generate(tmp_path, plan(server))
    image, text = server.bodies[0]["messages"][0]["content"]
    sent = base64.b64decode(image["image_url"]["url"].partition(",")[2])
    assert sent == (tmp_path / "images" / "red.png").read_bytes()
    assert text["text"] == "How do I open box 0?"


def test_a_second_run_asks_nothing(tmp_path):
    write_requests(tmp_path, 5)
    with Scripted(think) as server:
        first = generate(tmp_path, plan(server))
        before = (tmp_path / "traces.jsonl").read_bytes()
        assert generate(tmp_path, plan(server)) == first
        (tmp_path / "traces.jsonl").unlink()
        generate(tmp_path, plan(server))
        assert len(server.bodies) == 5
    assert (tmp_path / "traces.jsonl").read_bytes() == before


def test_failures_are_kept_apart_and_asked_again_at_the_next_run(tmp_path):
    requests = write_requests(tmp_path, 6)
    broken = {requests[1].question, requests[4].question}

    def script(body: dict[str, Any], number: int) -> Said:
        return Said(status=400, error="no\x1b[2J") if question(body) in broken else think(body, number)

    with Scripted(script) as server:
        manifest = generate(tmp_path, plan(server))
        assert [row.row for row in failures(tmp_path)] == ["q001-text-m", "q004-text-m"]
        assert "HTTP 400: no" in failures(tmp_path)[0].message
        assert (manifest.counts["traces"], manifest.counts["failed"]) == (4, 2)

        generate(tmp_path, plan(server), keep_failures=True)
        assert len(server.bodies) == 6

        broken.remove(requests[1].question)
        generate(tmp_path, plan(server))
        assert {question(body) for body in server.bodies[6:]} == {requests[1].question, requests[4].question}
        assert len(server.bodies) == 8
        assert [row.row for row in failures(tmp_path)] == ["q004-text-m"]

        broken.clear()
        generate(tmp_path, plan(server))
        generate(tmp_path, plan(server))
        assert len(server.bodies) == 9
    assert [row.request_id for row in traces(tmp_path)] == [r.id for r in requests]
    assert failures(tmp_path) == []


def test_kept_failures_are_no_reason_to_leave_out_the_rest(tmp_path):
    requests = write_requests(tmp_path, 2)
    with Scripted(
        lambda body, number: Said(status=400) if question(body) == requests[0].question else Said()
    ) as server:
        generate(tmp_path, plan(server))
        write_requests(tmp_path, 3)
        generate(tmp_path, plan(server), extend=True, keep_failures=True)
    assert [question(body) for body in server.bodies[2:]] == ["How do I open box 2?"]
    assert [row.row for row in failures(tmp_path)] == ["q000-text-m"]
    assert len(traces(tmp_path)) == 2


def test_what_was_cut_by_length_is_kept_and_marked(tmp_path):
    write_requests(tmp_path, 1)
    with Scripted(lambda body, number: Said(answer="<think>on and on", finish="length")) as server:
        manifest = generate(tmp_path, plan(server))
    (row,) = traces(tmp_path)
    assert (row.thinking, row.answer, row.finish_reason) == ("on and on", "", "length")
    assert manifest.counts["finish_reasons"] == {"length": 1}


def test_one_model_a_request(tmp_path):
    write_requests(tmp_path, 60)
    with Scripted(think) as server:
        generate(tmp_path, plan(server, "qwen", "kimi", assign="one", seed=3))
        two = {row.request_id: row.model for row in traces(tmp_path)}
        generate(tmp_path, plan(server, "qwen", "kimi", "glm", assign="one", seed=3), extend=True)
        three = {row.request_id: row.model for row in traces(tmp_path)}
    assert len(two) == len(three) == 60
    assert min(Counter(two.values()).values()) > 15
    assert min(Counter(three.values()).values()) > 8
    moved = {name for name in two if two[name] != three[name]}
    assert {three[name] for name in moved} == {"glm"}
    assert len(server.bodies) == 60 + len(moved)


def test_samples_differ_by_their_seed(tmp_path):
    write_requests(tmp_path, 1)
    with Scripted(think) as server:
        generate(tmp_path, plan(server, samples=3, of_model={"request": {"seed": 5}}))
    assert [row.id for row in traces(tmp_path)] == ["q000-text-m", "q000-text-m-2", "q000-text-m-3"]
    assert sorted(body["seed"] for body in server.bodies) == [5, 6, 7]


def test_more_samples_pay_for_themselves_alone(tmp_path):
    requests = write_requests(tmp_path, 3)
    with Scripted(think) as server:
        generate(tmp_path, plan(server))
        generate(tmp_path, plan(server, samples=2), extend=True)
        assert len(server.bodies) == 6
        assert [row.id for row in traces(tmp_path)] == [f"{r.id}-m{end}" for r in requests for end in ("", "-2")]
        generate(tmp_path, plan(server, samples=3), extend=True)
        assert len(server.bodies) == 9
        generate(tmp_path, plan(server), extend=True)
        assert len(server.bodies) == 9
    assert [row.id for row in traces(tmp_path)] == [f"{r.id}-m" for r in requests]


def test_first_samples_that_were_paid_for_with_a_number_keep_it(tmp_path):
    write_requests(tmp_path, 2)
    with Scripted(think) as server:
        older = plan(server, samples=2)
        first = Question(
            "q000-text-m-1", older.models.models[0], "How do I open box 0?", tmp_path / "images" / "red.png"
        )
        second = Question("q000-text-m-2", older.models.models[0], first.text, first.image)
        rows = [PaidReply(id=one.id, asked=one.digest, thinking="Hm.", answer="Paid.") for one in (first, second)]
        write_rows(tmp_path / "generate.paid.jsonl", rows)
        generate(tmp_path, older)
        assert [(row.id, row.answer == "Paid.") for row in traces(tmp_path)] == [
            ("q000-text-m-1", True),
            ("q000-text-m-2", True),
            ("q001-text-m", False),
            ("q001-text-m-2", False),
        ]
        assert len(server.bodies) == 2
        generate(tmp_path, plan(server), extend=True)
        assert [row.id for row in traces(tmp_path)] == ["q000-text-m-1", "q001-text-m"]
        assert len(server.bodies) == 2


def test_a_model_that_is_called_like_anothers_further_sample(tmp_path):
    write_requests(tmp_path, 1)
    with Scripted(think) as server:
        generate(tmp_path, plan(server, "a-2", "a", samples=2))
    assert {row.id: row.model for row in traces(tmp_path)} == {
        "q000-text-a-2-1": "a-2",
        "q000-text-a-2-2": "a-2",
        "q000-text-a": "a",
        "q000-text-a-2": "a",
    }


def test_growing_a_corpus_pays_for_what_is_new(tmp_path):
    write_requests(tmp_path, 10)
    with Scripted(think) as server:
        generate(tmp_path, plan(server, limit=3))
        with pytest.raises(StepError, match=r"other settings \(limit\); .*--again.*, or --extend to pay only for"):
            generate(tmp_path, plan(server))
        generate(tmp_path, plan(server), extend=True)
        assert Counter(question(body) for body in server.bodies).most_common(1)[0][1] == 1
        assert (len(server.bodies), len(traces(tmp_path))) == (10, 10)

        generate(tmp_path, plan(server, of_model={"request": {"temperature": 0.5}}), extend=True)
        assert len(server.bodies) == 20
        generate(tmp_path, plan(server, of_model={"request": {"temperature": 0.5}}), again=True)
        assert len(server.bodies) == 30


def test_going_back_to_earlier_settings_pays_for_nothing(tmp_path):
    write_requests(tmp_path, 4)
    with Scripted(lambda body, number: Said(f"At {body['temperature']:g}.")) as server:
        cool, warm = (plan(server, of_model={"request": {"temperature": value}}) for value in (0, 1))
        generate(tmp_path, cool)
        first = (tmp_path / "traces.jsonl").read_bytes()
        generate(tmp_path, warm, extend=True)
        assert {row.answer for row in traces(tmp_path)} == {"At 1."}
        assert len(server.bodies) == 8
        generate(tmp_path, cool, extend=True)
        assert len(server.bodies) == 8
    assert (tmp_path / "traces.jsonl").read_bytes() == first


def test_an_again_that_is_interrupted_pays_nothing_twice(tmp_path):
    write_requests(tmp_path, 10)

    def stopping(body: dict[str, Any], number: int) -> Said:
        return think(body, number) if number < stop_at else Said(status=401)

    stop_at = 1000
    with Scripted(stopping) as server:
        given = plan(server, of_model={"concurrency": 1})
        generate(tmp_path, given)
        stop_at = len(server.bodies) + 6
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Step, "finish", interrupted)
            with pytest.raises(KeyboardInterrupt):
                generate(tmp_path, given, again=True)
        before, stop_at = len(server.bodies), 1000
        assert len(read_rows(tmp_path / "generate.paid.jsonl", PaidReply)) == 6
        generate(tmp_path, given, again=True)
        assert len(server.bodies) == before + 4
        assert len(traces(tmp_path)) == 10
        generate(tmp_path, given, again=True)
        assert len(server.bodies) == before + 14
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Step, "finish", interrupted)
            with pytest.raises(KeyboardInterrupt):
                generate(tmp_path, given, extend=True)
        generate(tmp_path, given, again=True)
        assert len(server.bodies) == before + 24


def interrupted(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_another_image_under_the_same_name_is_another_question(tmp_path):
    write_requests(tmp_path, 3)
    with Scripted(think) as server:
        generate(tmp_path, plan(server))
        (tmp_path / "images" / "red.png").write_bytes(b"\x89PNG other")
        with pytest.raises(StepError, match=r"other settings \(images\)"):
            generate(tmp_path, plan(server))
        generate(tmp_path, plan(server), extend=True)
    assert [question(body) for body in server.bodies[3:]] == ["How do I open box 0?"]


def test_an_endpoint_that_answers_nothing_ends_the_run(tmp_path):
    write_requests(tmp_path, 100)
    with Scripted(lambda body, number: Said(status=401, error="bad key")) as server:
        with pytest.raises(StepError, match=r"m has answered none of its first 20 questions: m: HTTP 401: bad key"):
            generate(tmp_path, plan(server, of_model={"concurrency": 2}))
        assert len(server.bodies) <= UNANSWERED_AT_FIRST + 2
        server.script = think
        generate(tmp_path, plan(server))
    assert len(traces(tmp_path)) == 100


def test_an_endpoint_that_has_answered_before_may_refuse_many_again(tmp_path):
    write_requests(tmp_path, 30)

    def script(body: dict[str, Any], number: int) -> Said:
        return Said() if question(body) == "How do I open box 0?" else Said(status=400)

    with Scripted(script) as server:
        for _ in range(2):
            generate(tmp_path, plan(server, of_model={"concurrency": 1}))
            assert len(failures(tmp_path)) == 29


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ("../secret.png", r"\.\./secret\.png leads out of the corpus's folder"),
        ("/etc/secret.png", "leads out of the corpus's folder"),
        ("images/none.png", r"none\.png: can't be read"),
        ("images/red.tiff", r"red\.tiff: expected one of"),
    ],
)
def test_images_that_dont_fit_are_found_before_anything_is_paid(tmp_path, image, said):
    write_requests(tmp_path, 2)
    (tmp_path / "images" / "red.tiff").write_bytes(b"")
    write_rows(tmp_path / "requests.jsonl", [request(1), request(2, image=image)])
    with Scripted(think) as server:
        with pytest.raises(StepError, match=rf"requests\.jsonl, line 2, row q002-text, field image: .*{said}"):
            generate(tmp_path, plan(server))
        assert server.bodies == []


def test_ids_that_would_be_the_same(tmp_path):
    write_rows(tmp_path / "requests.jsonl", [request(1, id="q", image=None), request(1, id="q-a", image=None)])
    with Scripted(think) as server, pytest.raises(StepError, match="requests q and q-a make two traces q-a-b"):
        generate(tmp_path, plan(server, "a-b", "b"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("models: []", "models.yaml:1: models: list should have at least 1 item"),
        ("modles: []", 'modles: unknown key; did you mean "models"?'),
        ("models: [{name: a, base_url: 'http://h', model: m}]\nassign: some", "models.yaml:2: assign: "),
        ("models:\n- name: a\n  base_url: h\n  model: m", "models.yaml:3: models.0.base_url: expected a URL"),
        ("models:\n- name: a\n  name: b", "models.yaml:3: models.0.name: the key occurs twice"),
        (
            "models:\n- {name: a, base_url: 'http://h', model: m}\n- {name: a, base_url: 'http://h', model: n}",
            "models: two are called a",
        ),
    ],
)
def test_bad_settings_are_refused_with_file_and_key(tmp_path, text, said):
    write_requests(tmp_path, 1)
    (tmp_path / "models.yaml").write_text(text)
    result = CliRunner().invoke(app, ["generate", str(tmp_path), "--models", str(tmp_path / "models.yaml")])
    assert result.exit_code == 1
    assert said in result.stderr


def test_the_command(tmp_path):
    write_requests(tmp_path, 10)
    with Scripted(think) as server:
        models = {"models": [server.endpoint("m", price={"prompt": 1, "completion": 2})]}
        (tmp_path / "models.yaml").write_text(yaml.safe_dump(models))
        arguments = ["generate", str(tmp_path), "--models", str(tmp_path / "models.yaml"), "--split", "test"]
        result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, result.stderr) == (0, "")
    counts = json.loads(result.stdout)
    assert (counts["traces"], counts["failed"]) == (2, 0)
    assert counts["models"]["m"]["cost"] == pytest.approx(2 * (11 + 2 * 7) / 1e6)
    assert {row.split for row in traces(tmp_path)} == {"test"}


def test_a_missing_key_is_one_sentence(tmp_path):
    write_requests(tmp_path, 1)
    with Scripted(think) as server:
        with pytest.raises(StepError, match="NO_SUCH_KEY holds no key"):
            generate(tmp_path, plan(server, of_model={"api_key_env": "NO_SUCH_KEY"}))


HEEDED = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
"""What a shell runs in the background ignores SIGINT, and so does what that starts."""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_killed_goes_on_and_pays_nothing_twice(tmp_path, how):
    """Questions whose reply had reached the ledger aren't asked again; only what was in flight is."""
    write_requests(tmp_path, 120)
    concurrency = 4
    answered: list[str] = []

    def script(body: dict[str, Any], number: int) -> Said:
        answered.append(question(body))
        # Slow before the end, so that the signal comes in time on a busy machine.
        return Said("Yes.", "Hm.", wait=2.0 if 60 < len(answered) < 60 + concurrency else 0.05)

    with Scripted(script) as server:
        models = {"models": [server.endpoint("m", concurrency=concurrency, stream=False)]}
        (tmp_path / "models.yaml").write_text(yaml.safe_dump(models))
        command = [sys.executable, "-c", f"{HEEDED}; from guardtrace_trainer.annotation.commands import app; app()"]
        command += ["generate", str(tmp_path), "--models", str(tmp_path / "models.yaml")]
        process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, stderr=-1)
        while len(answered) < 40:
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(how)
        _, said = process.communicate(timeout=20)
        assert process.returncode != 0
        assert not (tmp_path / "traces.jsonl").exists()
        if how is signal.SIGINT:
            assert said.decode().strip() == "guardtrace-train: stopped; the same command goes on from here"
        kept = {row.id for row in read_rows(tmp_path / "generate.paid.jsonl", PaidReply)}
        assert len(kept) >= 40 - 2 * concurrency

        before = len(answered)
        generate(tmp_path, Plan(Models(models=[Endpoint.model_validate(models["models"][0])])))
    assert not set(answered[before:]) & {f"How do I open box {int(name[1:4])}?" for name in kept}
    assert len(traces(tmp_path)) == 120
    assert len(server.bodies) <= 120 + concurrency


def test_images_that_change_places_are_noticed(tmp_path):
    write_requests(tmp_path, 1)
    one, other = tmp_path / "images" / "one.png", tmp_path / "images" / "other.png"
    Image.new("RGB", (8, 8), "red").save(one)
    Image.new("RGB", (8, 8), "blue").save(other)
    rows = [request(number, image=f"images/{path.name}") for number, path in enumerate((one, other))]
    write_rows(tmp_path / "requests.jsonl", rows)
    with Scripted(think) as server:
        generate(tmp_path, plan(server))
        swapped = [other.read_bytes(), one.read_bytes()]
        for path, data in zip((one, other), swapped, strict=True):
            path.write_bytes(data)
        with pytest.raises(StepError, match=r"other settings \(images\)"):
            generate(tmp_path, plan(server))
        generate(tmp_path, plan(server), extend=True)
        assert len(server.bodies) == 4
