"""Images and sub-questions that models are paid for, once: over real HTTP, with failures, refusals and a kill."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from guardtrace_proxy.policy.errors import SettingsError
from guardtrace_trainer.corpus import csdj
from guardtrace_trainer.corpus.expand import LeftOut, expand
from guardtrace_trainer.corpus.maker import Inputs
from guardtrace_trainer.corpus.paid import Aligned, ImagesEndpoint
from guardtrace_trainer.endpoints import Endpoint, EndpointFailure
from guardtrace_trainer.rows import Request, read_rows
from guardtrace_trainer.settings import read_settings
from guardtrace_trainer.steps import StepError
from tests.trainer.corpus.drawing import Server, drawn, said

FAST = {"concurrency": 1, "attempts": 1}
REFUSED = (400, {"error": {"message": "your prompt was flagged"}})


def painter(server, tmp_path, **fields):
    return Inputs(aligned=read_settings(server.endpoint(tmp_path, **{**FAST, **fields}), ImagesEndpoint))


def test_an_image_is_drawn_for_each_query(corpus, tmp_path):
    colours = ["teal", "navy", "olive", "maroon", "gray", "lime", "aqua", "red"]
    with Server(lambda prompt, number: drawn(colours[number - 1])) as server:
        expand(
            corpus, painter(server, tmp_path, prompt="Paint: {query}", request={"size": "64x48"}), variants=["aligned"]
        )
        requests = read_rows(corpus / "requests.jsonl", Request)
        assert server.prompts == [f"Paint: {request.query}" for request in requests]
        assert server.bodies[0] == {
            "model": "m", "prompt": server.prompts[0], "n": 1, "size": "64x48", "response_format": "b64_json",
        }  # fmt: skip
        for request, colour in zip(requests, colours, strict=True):
            with Image.open(corpus / request.image) as image:
                assert image.tobytes() == Image.new("RGB", (64, 48), colour).tobytes()
        expand(
            corpus, painter(server, tmp_path, prompt="Paint: {query}", request={"size": "64x48"}), again=True, seed=9
        )
        assert len(server.bodies) == 8


def test_what_was_drawn_before_a_failure_is_not_asked_for_again(corpus, tmp_path):
    with Server(lambda prompt, number: drawn() if number <= 5 else (500, {})) as server:
        with pytest.raises(EndpointFailure, match="painter: HTTP 500"):
            expand(corpus, painter(server, tmp_path), variants=["aligned"])
        server.script = lambda prompt, number: drawn()
        counts = expand(corpus, painter(server, tmp_path), variants=["aligned"])
    assert counts["aligned"] == 8
    assert sorted(Counter(server.prompts).values()) == [1] * 7 + [2]


def test_after_a_failure_those_in_flight_are_waited_for_and_kept(corpus, tmp_path):
    both = threading.Barrier(2)

    def script(prompt, number):
        if number <= 2:
            both.wait(10)
        if number == 2:
            time.sleep(0.3)  # comes after the failure
        return (500, {}) if number == 1 else drawn()

    with Server(script) as server:
        with pytest.raises(EndpointFailure):
            expand(corpus, painter(server, tmp_path, concurrency=2), variants=["aligned"])
    assert len(server.bodies) == 2
    assert len(read_rows(corpus / "aligned.jsonl", Aligned)) == 1


def test_a_killed_process_pays_no_image_twice(corpus, tmp_path):
    fifth, go_on = threading.Event(), threading.Event()

    def script(prompt, number):
        if number == 5:
            fifth.set()
            go_on.wait(20)
        return drawn()

    with Server(script) as server:
        command = [
            *(sys.executable, "-c", "from guardtrace_trainer.corpus.commands import app; app()", "expand", corpus),
            *("--variants", "aligned,figstep", "--images-endpoint", server.endpoint(tmp_path, **FAST)),
        ]
        process = subprocess.Popen(command, env=process_env())
        assert fifth.wait(30)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        go_on.set()
        server.script = lambda prompt, number: drawn()
        again = subprocess.run(command, env=process_env(), capture_output=True, text=True, timeout=60, check=False)
    assert again.returncode == 0, again.stderr
    assert "requests 16" in again.stdout
    counts = Counter(server.prompts)
    assert (len(counts), sum(counts.values()), max(counts.values())) == (8, 9, 2)
    assert counts[server.prompts[4]] == 2  # the one whose image never came


def process_env():
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def test_refusals_are_left_out_logged_and_not_asked_again(corpus, tmp_path):
    with Server(lambda prompt, number: REFUSED if "poem" in prompt else drawn()) as server:
        counts = expand(corpus, painter(server, tmp_path), variants=["aligned"])
        assert (counts["requests"], counts["left_out"]) == (7, 1)
        (row,) = read_rows(corpus / "left-out.jsonl", LeftOut)
        assert "HTTP 400" in row.why
        assert "flagged" in row.why
        expand(corpus, painter(server, tmp_path), variants=["aligned", "text"], again=True)
    assert len(server.bodies) == 8


def test_an_endpoint_that_refuses_all_is_set_up_wrongly(corpus, tmp_path):
    with Server(lambda prompt, number: REFUSED) as server:
        with pytest.raises(StepError, match=r"--images-endpoint: all of 8 requests were refused: .*flagged"):
            expand(corpus, painter(server, tmp_path), variants=["aligned"])
        server.script = lambda prompt, number: drawn()
        assert expand(corpus, painter(server, tmp_path), variants=["aligned"])["aligned"] == 8


def test_a_wrong_key_stops_at_once(corpus, tmp_path):
    with Server(lambda prompt, number: (401, {"error": "no such key"})) as server:
        with pytest.raises(EndpointFailure, match="HTTP 401"):
            expand(corpus, painter(server, tmp_path), variants=["aligned"])
    assert len(server.bodies) == 1


def test_another_prompt_is_another_image_and_a_lost_one_is_asked_for(corpus, tmp_path):
    with Server(lambda prompt, number: drawn()) as server:
        expand(corpus, painter(server, tmp_path), variants=["aligned"])
        next((corpus / "images" / "drawn").iterdir()).unlink()
        expand(corpus, painter(server, tmp_path), variants=["aligned"])
        assert len(server.bodies) == 9
        expand(corpus, painter(server, tmp_path, prompt="{query}"), variants=["aligned"], again=True)
        assert len(server.bodies) == 17
        moved = painter(server, tmp_path, prompt="{query}", name="elsewhere")
        expand(corpus, moved, variants=["aligned"], again=True)
        assert len(server.bodies) == 17


def test_going_back_to_an_earlier_prompt_pays_for_nothing(corpus, photos, tmp_path):
    with Server(lambda prompt, number: drawn() if number <= 8 else drawn("navy")) as server:
        first, second = (painter(server, tmp_path, prompt=prompt) for prompt in ("Paint: {query}", "Draw: {query}"))
        expand(corpus, first, variants=["aligned"])
        images = [request.image for request in read_rows(corpus / "requests.jsonl", Request)]
        expand(corpus, second, variants=["aligned"], again=True)
        assert len(server.bodies) == 16
        expand(corpus, first, variants=["aligned"], again=True)
        assert len(server.bodies) == 16
    assert [request.image for request in read_rows(corpus / "requests.jsonl", Request)] == images

    with Server(lambda prompt, number: said("1. Who?\n2. How?\n3. When?")) as server:
        for count, model in ((8, "a"), (16, "b"), (16, "a")):
            endpoint = read_settings(server.endpoint(tmp_path, stream=False, **{**FAST, "model": model}), Endpoint)
            expand(corpus, Inputs(irrelevant=photos, decompose=endpoint), variants=["csdj"], again=True)
            assert len(server.bodies) == count


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((200, {"data": [{"url": "http://example.com/a.png"}]}), "holds no b64_json"),
        ((200, {"data": []}), "holds no image"),
        ((200, {"data": [{"b64_json": "bm90IGFuIGltYWdl"}]}), "image can't be taken"),
        ((200, {"data": [{"b64_json": "***"}]}), "image can't be taken"),
        ((200, ["no"]), "holds no image"),
    ],
)
def test_replies_without_an_image(corpus, tmp_path, answer, message):
    with Server(lambda prompt, number: answer) as server, pytest.raises(EndpointFailure, match=message):
        expand(corpus, painter(server, tmp_path), variants=["aligned"])


def test_a_large_image_is_kept_as_auditors_see_it(corpus, tmp_path):
    large = drawn(size=(1536, 1024))
    with Server(lambda prompt, number: large) as server:
        expand(corpus, painter(server, tmp_path), variants=["aligned"])
    with Image.open(corpus / read_rows(corpus / "requests.jsonl", Request)[0].image) as image:
        assert image.width * image.height <= 1280 * 28 * 28


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": "a picture"}, r"prompt: .*expected \{query\} in it"),
        ({"thinking": {"style": "field"}}, "thinking aren't for models that draw"),
        ({"request": {"prompt": "x"}}, "prompt stands beside request"),
        ({"base_uri": "x"}, "base_uri: unknown key"),
    ],
)
def test_settings_of_endpoints(tmp_path, fields, message):
    server = Server(lambda prompt, number: drawn())
    with pytest.raises(SettingsError, match=message):
        painter(server, tmp_path, **fields)


def test_sub_questions_come_from_a_model(corpus, photos, tmp_path):
    def script(prompt, number):
        assert prompt.startswith(csdj.PROMPT.split("{query}")[0])
        return said("I'd rather not.") if "poem" in prompt else said("1. Who?\n2. How?\n3. When?")

    with Server(script) as server:
        endpoint = read_settings(server.endpoint(tmp_path, stream=False, **FAST), Endpoint)
        inputs = Inputs(irrelevant=photos, decompose=endpoint)
        counts = expand(corpus, inputs, variants=["csdj"])
        assert (counts["csdj"], counts["left_out"]) == (7, 1)
        expand(corpus, inputs, variants=["csdj"], again=True, seed=3)
    assert len(server.bodies) == 8
    requests = read_rows(corpus / "requests.jsonl", Request)
    assert {request.question for request in requests} == {csdj.QUESTION}
    assert "no three numbered lines: I'd rather not." in read_rows(corpus / "left-out.jsonl", LeftOut)[0].why


def test_the_documented_endpoint_loads(tmp_path):
    pages = "\n".join(page.read_text("utf-8") for page in sorted((Path(__file__).parents[3] / "docs").glob("*.md")))
    (block,) = re.findall(r"^```yml\n(# images\.yaml.*?)^```$", pages, re.MULTILINE | re.DOTALL)
    (tmp_path / "images.yaml").write_text(block, "utf-8")
    assert read_settings(tmp_path / "images.yaml", ImagesEndpoint).request == {"size": "1024x1024"}
