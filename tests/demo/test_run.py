"""The demo from end to end, with an auditor that goes by a word."""

from __future__ import annotations

import json

import anyio
import pytest
import structlog
from typer.testing import CliRunner

from guardtrace_proxy.auditor.protocol import AuditorSettingsError, DoesNotFit
from guardtrace_proxy.cli import demo as command
from guardtrace_proxy.cli.app import app
from guardtrace_proxy.demo.compare import Comparison
from guardtrace_proxy.demo.run import Demo
from guardtrace_proxy.demo.traces import DemoTrace
from guardtrace_proxy.server import service
from tests.demo.scripted import WordAuditor, a_trace, harmful

LONG = "Let me think about what is asked here, calmly and at length. Then HARM is done so, and more of it is told."


@pytest.fixture(autouse=True)
def _word_auditor(monkeypatch):
    monkeypatch.setattr(service, "auditor_from", lambda *_: WordAuditor())


def play(*traces: DemoTrace, policy: str = "balanced") -> list[Comparison]:
    async def all_of_them(running: Demo) -> list[Comparison]:
        return [await running.play(trace, lambda _: None) for trace in traces]

    with Demo(traces, pace=0, policy=policy, model="unused") as running:
        return anyio.run(all_of_them, running)


def test_a_benign_trace_passes_whole():
    (comparison,) = play(a_trace())
    assert (comparison.through.reasoning, comparison.through.content) == ("Two and two make four.", "Four.")
    assert (comparison.action, comparison.level, comparison.leaked_tokens) == ("pass", 0.0, None)
    assert comparison.through.finish_reason == comparison.without.finish_reason == "stop"
    assert comparison.through.done
    assert comparison.timeline


def test_the_environments_proxies_are_never_asked(monkeypatch):
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    (comparison,) = play(a_trace())
    assert (comparison.without.error, comparison.through.error) == (None, None)
    assert comparison.through.reasoning == "Two and two make four."


@pytest.mark.parametrize("raw", [None, "<think>{}</think>No.", "{}</think>No."])
def test_a_harmful_trace_is_cut_before_it_leaks_in_every_dialect(raw):
    (comparison,) = play(harmful(LONG, raw=raw and raw.format(LONG)))
    assert (comparison.action, comparison.level, comparison.leaked_tokens) == ("cut", 1.0, 0)
    assert comparison.through.finish_reason == "content_filter"
    assert "HARM" not in comparison.through.reasoning + comparison.through.content
    assert "HARM" in comparison.without.reasoning + comparison.without.content


def test_monitor_alters_nothing_and_the_leak_is_counted():
    (comparison,) = play(harmful(LONG), policy="monitor")
    assert comparison.through.reasoning == LONG
    assert (comparison.action, comparison.level) == ("pass", 1.0)
    assert comparison.leaked_tokens > 10


def test_each_trace_has_a_timeline_of_its_own():
    first, second, third = play(a_trace(), harmful(LONG), a_trace(name="u"))
    assert (first.level, second.level, third.level) == (0.0, 1.0, 0.0)
    assert second.timeline[-1].decision.action.value == "cut"


def write(folder, *rows):
    path = folder / "traces.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


BENIGN = {"name": "benign", "question": "?", "thinking": "Two and two make four.", "answer": "Four."}
HARMFUL = {
    "name": "harmful", "question": "?", "thinking": "Let me think. Then HARM is done so, step by step.",
    "answer": "No.", "thinking_sentences": ["Let me think.", "Then HARM is done so, step by step."],
    "onset_sentence": 1,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _no_log(monkeypatch):
    """The command sets the log up for its whole process, which is ours here."""
    monkeypatch.setattr(command, "configure_logging", lambda *_: None)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    yield
    structlog.reset_defaults()


def test_the_command_prints_one_object_and_status_0_without_a_leak(tmp_path):
    said = CliRunner().invoke(app, ["demo", "--traces", write(tmp_path, BENIGN, HARMFUL), "--pace", "0", "--json"])
    assert said.exit_code == 0
    told = json.loads(said.stdout)
    assert told["leaked_tokens"] == 0
    assert [row["action"] for row in told["traces"]] == ["pass", "cut"]
    assert [row["leaked_tokens"] for row in told["traces"]] == [None, 0]
    assert [row["annotated"] for row in told["traces"]] == [0, 1]
    assert {"name", "action", "level", "leaked_tokens", "held_tokens", "ttft_ms"} <= set(told["traces"][0])


def test_the_command_ends_with_status_1_if_anything_leaked(tmp_path):
    arguments = ["demo", "--traces", write(tmp_path, BENIGN, HARMFUL), "--pace", "0", "--policy", "monitor", "--json"]
    said = CliRunner().invoke(app, arguments)
    assert said.exit_code == 1
    assert json.loads(said.stdout)["leaked_tokens"] > 5


@pytest.mark.parametrize("arguments", [["--json"], []])
def test_the_command_ends_with_status_2_if_a_trace_was_refused(tmp_path, monkeypatch, arguments):
    async def refuse(*_):
        raise DoesNotFit("messages", "the question is more than the auditor takes")

    monkeypatch.setattr(WordAuditor, "open", refuse)
    said = CliRunner().invoke(app, ["demo", "--traces", write(tmp_path, BENIGN), "--pace", "0", *arguments])
    assert said.exit_code == 2
    (line,) = said.stderr.splitlines()
    assert line.startswith("benign: through the proxy it ended with an error: Error code: 400")
    assert "more than the auditor takes" in line


def test_a_leak_counts_for_more_than_a_trace_that_broke_off(tmp_path, monkeypatch):
    whole = command.Demo.play

    async def play_and_break_off(*arguments):
        comparison = await whole(*arguments)
        comparison.without.error = "broken\noff"
        return comparison

    monkeypatch.setattr(command.Demo, "play", play_and_break_off)
    for policy, status in (("monitor", 1), ("balanced", 2)):
        arguments = ["--traces", write(tmp_path, HARMFUL), "--pace", "0", "--policy", policy, "--json"]
        said = CliRunner().invoke(app, ["demo", *arguments])
        assert said.exit_code == status
        assert said.stderr == "harmful: without the proxy it ended with an error: broken off\n"


def test_the_command_shows_a_table(tmp_path):
    said = CliRunner(env={"COLUMNS": "160"}).invoke(app, ["demo", "--traces", write(tmp_path, HARMFUL), "--pace", "0"])
    assert said.exit_code == 0
    assert "what got through" in said.stdout
    assert "finish_reason: content_filter" in said.stdout


def test_the_command_takes_a_sample(tmp_path):
    rows = [{**BENIGN, "name": f"t{number}"} for number in range(9)]
    said = CliRunner().invoke(
        app, ["demo", "--traces", write(tmp_path, *rows), "--pace", "0", "--sample", "2", "--json"]
    )
    assert len(json.loads(said.stdout)["traces"]) == 2


def test_a_bad_file_is_told_with_status_2(tmp_path):
    said = CliRunner(env={"COLUMNS": "400"}).invoke(
        app, ["demo", "--traces", write(tmp_path, {"question": "?"}), "--json"]
    )
    assert (said.exit_code, said.stdout) == (2, "")
    assert "traces.jsonl:1: " in said.stderr


@pytest.mark.parametrize("arguments", [["--policy", "nobody"], ["--pace", "-1"], ["--sample", "0"], ["--sample", "-3"]])
def test_options_that_cant_be_are_told_with_status_2(tmp_path, arguments):
    said = CliRunner(env={"COLUMNS": "400"}).invoke(app, ["demo", "--traces", write(tmp_path, BENIGN), *arguments])
    assert said.exit_code == 2, said.output
    assert said.stderr


def test_an_auditor_that_doesnt_start_is_told(tmp_path, monkeypatch):
    async def start(_):
        raise AuditorSettingsError("auditor.model: there is no such folder")

    monkeypatch.setattr(WordAuditor, "start", start)
    said = CliRunner().invoke(app, ["demo", "--traces", write(tmp_path, BENIGN), "--json"])
    assert (said.exit_code, said.stdout) == (2, "")
    assert "didn't start: auditor.model: there is no such folder\n" in said.stderr
