"""Commands that end by themselves: what they say, and with which exit status."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

import anyio
import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner, Result

from guardtrace_proxy import __version__
from guardtrace_proxy.auditor import published
from guardtrace_proxy.cli.app import app
from guardtrace_proxy.cli.demo import _play_all
from guardtrace_proxy.demo.compare import Comparison
from guardtrace_proxy.policy.loading import PRESETS
from guardtrace_proxy.server.config import load_config
from tests.cli.serving import ENVIRON, GUARDTRACE, run, write_config
from tests.demo.scripted import a_trace
from tests.server.scripted import DONE, SSE_HEAD, by_word, chunk, http, judging, model_server
from tests.tls import private_authority


def call(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}).invoke(
        app, [str(one) for one in arguments]
    )


def test_version_and_help_as_a_process():
    said = run("--version")
    assert (said.returncode, said.stdout, said.stderr) == (0, f"guardtrace-proxy {__version__}\n", "")
    said = run("--help")
    assert said.returncode == 0
    for command in ("serve", "demo", "policy", "keys", "check", "auditor"):
        assert command in said.stdout


@pytest.mark.parametrize(
    "command",
    [
        "serve",
        "demo",
        "policy check",
        "policy explain",
        "keys new",
        "check config",
        "check upstream",
        "check middleware",
        "auditor check",
    ],
)
def test_every_command_explains_itself(command):
    said = call(*command.split(), "--help")
    assert said.exit_code == 0
    assert "Usage: " in said.output


@pytest.mark.parametrize(
    "arguments", ["nonsense", "serve --prot 1", "serve --port x", "serve --port 65536", "policy check"]
)
def test_a_wrong_command_line_is_status_2(arguments):
    assert call(*arguments.split()).exit_code == 2


def test_a_new_key_is_shown_once_with_its_hash():
    first, second = call("keys", "new"), call("keys", "new", "--prefix", "acme-")
    assert first.exit_code == second.exit_code == 0
    keys = []
    for said, prefix in ((first, "gt-"), (second, "acme-")):
        key = re.search(rf"client\): +({prefix}\S+)$", said.output, re.M)[1]
        assert re.search(r"sha256:[0-9a-f]{64}$", said.output, re.M)[0] == (
            f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"
        )
        assert len(key.removeprefix(prefix)) == 43
        assert said.output.count(key) == 1
        keys.append(key)
    assert keys[0] != keys[1]


@pytest.mark.parametrize("prefix", ["clé-", " a", "a b", "a\n"])
def test_a_key_that_no_header_could_carry_isnt_made(prefix):
    said = call("keys", "new", "--prefix", prefix)
    assert (said.exit_code, said.stdout) == (2, "")
    assert said.stderr.startswith("--prefix: ")


def test_the_printed_hash_is_what_guardtrace_yaml_takes(tmp_path):
    hashed = re.search(r"sha256:\w+", call("keys", "new").output)[0]
    config = write_config(tmp_path, "http://a/v1", "http://b/v1", tenants={"all": {"policy": "test", "keys": [hashed]}})
    said = call("check", "upstream", "nobody", "--config", config)
    assert "there is no upstream 'nobody'; known: default" in said.output


def test_policy_check_says_what_is_wrong_and_checks_the_rest(tmp_path):
    good, doubtful, bad = (tmp_path / f"{name}.yaml" for name in ("good", "doubtful", "bad"))
    good.write_text("version: 1\n")
    doubtful.write_text("version: 1\nthinking: {mode: monitor}\n")
    bad.write_text("version: 1\nboundry: {}\n")
    said = call("policy", "check", good, doubtful)
    assert said.exit_code == 0
    assert said.stdout == f"{good}: ok\n{doubtful}: ok\n"
    assert f"{doubtful}: warning: thinking is guarded less than the answer" in said.stderr
    said = call("policy", "check", bad, good, tmp_path / "absent.yaml")
    assert said.exit_code == 1
    assert said.stdout == f"{good}: ok\n"
    assert said.stderr.splitlines() == [
        f'{bad}:2: boundry: unknown key; did you mean "boundary"?',
        f"{tmp_path / 'absent.yaml'}: can't be read: No such file or directory",
    ]


def test_policy_explain_names_every_value_and_where_it_came_from(tmp_path):
    path = tmp_path / "acme.yaml"
    path.write_text("version: 1\nextends: strict\nmessages:\n  cut: Schluß.\n")
    said = call("policy", "explain", path, "--json")
    assert said.exit_code == 0
    told = json.loads(said.stdout)
    assert told["values"]["messages.cut"] == {"value": "Schluß.", "from": f"{path}:4"}
    assert told["values"]["boundary.first"]["from"].startswith("preset strict:")
    assert told["values"]["decision.confirmations"] == {"value": 1, "from": "default"}
    assert re.fullmatch(r"[0-9a-f]{64}", told["sha256"])
    plain = call("policy", "explain", path)
    assert plain.exit_code == 0
    lines = [line for line in plain.stdout.splitlines()[1:] if not line.startswith(" ")]
    assert lines[-1] == f"sha256 {told['sha256']}"
    assert set(told["values"]) == {line.split()[0] for line in lines[:-1] if not line.startswith("- ")}
    assert told["notes"] == [line[2:] for line in lines if line.startswith("- ")]


def test_policy_explain_shows_the_action_that_counts_in_each_phase(tmp_path):
    path = tmp_path / "acme.yaml"
    path.write_text("version: 1\nextends: strict\nanswer: {actions: {harmful: redact}}\nhold_limit_ms: 5\n")
    told = json.loads(call("policy", "explain", path, "--json").stdout)
    assert told["values"]["thinking.actions.harmful"] == {
        "value": None,
        "from": "default",
        "effective": {"value": "cut", "key": "actions.harmful", "from": "preset strict:6"},
    }
    assert told["values"]["answer.actions.harmful"] == {"value": "redact", "from": f"{path}:3"}
    idle = f"hold_limit_ms has no effect without on_auditor_failure: hold ({path}:4)"
    assert idle in told["warnings"]
    plain = call("policy", "explain", path)
    assert re.search(r'^thinking\.actions\.harmful +"cut" +preset strict:6 \(actions\.harmful\)', plain.stdout, re.M)
    assert f"{path}: warning: {idle}" in plain.stderr


def test_policy_explain_of_a_preset_and_of_a_bad_file(tmp_path):
    assert call("policy", "explain", PRESETS / "balanced.yaml").exit_code == 0
    bad = tmp_path / "bad.yaml"
    bad.write_text("version: 3\n")
    said = call("policy", "explain", bad, "--json")
    assert (said.exit_code, said.stdout) == (1, "")
    assert f"{bad}:1: version: " in said.stderr


@pytest.mark.parametrize("name", ["strict", "balanced", "monitor"])
def test_a_preset_is_a_policy_by_its_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = call("policy", "check", name)
    assert (said.exit_code, said.stdout) == (0, f"{name}: ok\n")
    said = call("policy", "explain", name, "--json")
    assert json.loads(said.stdout)["values"]["version"]["from"].startswith(f"preset {name}:")
    (tmp_path / name).write_text("version: 3\n")
    said = call("policy", "check", name)
    assert said.stderr.startswith(f"{name}:1: version: "), "a file of that name goes first"


def test_a_name_that_is_no_preset_is_a_file_that_isnt_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = call("policy", "check", "strikt")
    assert said.exit_code == 1
    assert said.stderr == (
        "strikt: can't be read: No such file or directory, and the presets are balanced, monitor and strict\n"
    )


@pytest.mark.parametrize("value", ["2026-11-30", "!!binary aGk="])
def test_a_value_of_a_type_that_no_policy_has_is_one_line(value, tmp_path):
    path = tmp_path / "acme.yaml"
    path.write_text(f"version: 1\nmessages: {{cut: {value}}}\n")
    said = call("policy", "check", path)
    assert (said.exit_code, said.stdout) == (1, "")
    assert said.stderr == f"{path}:2: messages.cut: input should be a valid string\n"


@pytest.mark.parametrize("command", ["check", "explain"])
def test_settings_that_are_taken_for_a_policy_are_one_line(command, tmp_path):
    config = write_config(tmp_path, "http://127.0.0.1:1/v1", "http://127.0.0.1:2/v1")
    said = call("policy", command, config)
    assert (said.exit_code, said.stdout) == (1, "")
    assert said.stderr == f"{config}: this is a settings file, not a policy: guardtrace check config {config}\n"


def test_policy_explain_keeps_its_lines_whole_where_no_terminal_is(tmp_path):
    path = tmp_path / f"{'long' * 20}.yaml"
    path.write_text("version: 1\nextends: strict\nmessages:\n  cut: Stopped.\n")
    said = CliRunner(env={"COLUMNS": "80"}).invoke(app, ["policy", "explain", str(path)])
    assert said.exit_code == 0
    assert re.search(rf'^messages\.cut +"Stopped\." +{re.escape(str(path))}:4$', said.stdout, re.M)
    assert not re.search(r"[ \t]$", said.stdout, re.M)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals of this kind")
def test_policy_explain_folds_on_a_terminal():
    ours, its = os.openpty()
    command = [sys.executable, "-c", GUARDTRACE, "policy", "explain", "strict"]
    process = subprocess.Popen(command, stdout=its, env={**ENVIRON, "COLUMNS": "50", "TERM": "xterm"})
    os.close(its)
    shown = b""
    try:
        while data := os.read(ours, 65536):
            shown += data
    except OSError:  # how Linux says that nobody writes any more
        pass
    os.close(ours)
    assert process.wait(60) == 0
    table = re.sub(r"\x1b\[\d*m", "", shown.decode().partition("\r\n- ")[0]).splitlines()
    assert len(table) > 20
    assert max(map(len, table)) <= 50


def thinker(body: dict[str, Any]) -> Iterable[bytes]:
    if not body:
        return [http(200, json.dumps({"object": "list", "data": [{"id": "thinker-8b"}]}))]
    return [SSE_HEAD, chunk({"content": "Let me count."}), chunk({"content": "</think>3"}), chunk({}, "stop"), DONE]


def test_check_upstream_prints_a_line_that_can_be_pasted(tmp_path):
    with model_server(thinker) as server:
        config = write_config(tmp_path, server.url, "http://127.0.0.1:9/v1")
        said = call("check", "upstream", "default", "--config", config)
    assert said.exit_code == 0
    assert "model:            thinker-8b\n" in said.stdout
    assert "reasoning:        inline, <think> … </think>\n" in said.stdout
    assert "starts open:      yes\n" in said.stdout
    assert "usage:            none\n" in said.stdout
    told, line = said.stdout.splitlines()[-2:]
    assert told == "write below upstreams.default, in place of its own `thinking` if it has one:"
    pasted = tmp_path / "pasted.yaml"
    settings = f"upstreams:\n  default:\n    base_url: http://a/v1\n{line}\nauditor: {{base_url: http://b/v1}}\ntenants: {{}}\n"
    pasted.write_text(settings)
    thinking = load_config(pasted, {}).upstreams["default"].thinking
    assert (thinking.style, thinking.starts_open) == ("inline", True)


def long_thinker(body: dict[str, Any]) -> Iterable[bytes]:
    """Its template opens the block, and it thinks for some 2,500 tokens."""
    thinking = ["letter "] * 2500
    if body["max_tokens"] < len(thinking):
        rest = [*(chunk({"content": word}) for word in thinking[: body["max_tokens"]]), chunk({}, "length")]
    else:
        said = [*thinking, "</think>", "3"]
        rest = [*(chunk({"content": word}) for word in said), chunk({}, "stop")]
    return [SSE_HEAD, *rest, DONE]


def test_check_upstream_prints_no_line_where_the_thinking_was_longer_than_its_limit(tmp_path):
    with model_server(long_thinker) as server:
        config = write_config(tmp_path, server.url, "http://127.0.0.1:9/v1")
        said = call("check", "upstream", "default", "--config", config, "--model", "m")
        longer = call("check", "upstream", "default", "--config", config, "--model", "m", "--max-tokens", "4096")
    assert said.exit_code == 1
    assert "reasoning:        none seen\nstarts open:      unknown\n" in said.stdout
    assert "thinking: {" not in said.output
    assert said.stderr == (
        "upstream default: where its thinking stands couldn't be found out: the reply stopped at its length limit before "
        "a tag or field of thinking came (at most 2048 tokens were asked for). Ask again with more: --max-tokens 8192\n"
    )
    assert longer.exit_code == 0
    assert longer.stdout.endswith("    thinking: {style: inline, starts_open: true}\n")


def test_check_upstream_that_cant_be_asked(tmp_path):
    with model_server(lambda _: []) as server:
        pass
    config = write_config(tmp_path, server.url, "http://127.0.0.1:9/v1")
    said = call("check", "upstream", "default", "--config", config, "--model", "m")
    assert (said.exit_code, said.stdout) == (1, "")
    began = f"upstream default, {server.url}: The upstream model server can't be reached. (ClientConnectorError: "
    assert said.stderr.startswith(began)
    assert str(urlsplit(server.url).port) in said.stderr.removeprefix(began)


def test_check_upstream_that_refuses(tmp_path):
    error = '{"error": {"message": "no such model"}}'
    with model_server(lambda _: [http(404, error)]) as server:
        config = write_config(tmp_path, server.url, "http://127.0.0.1:9/v1")
        said = call("check", "upstream", "default", "--config", config, "--model", "m")
    assert said.stderr == f"upstream default, {server.url}: no such model\n"


def test_check_upstream_that_breaks_off_with_an_error(tmp_path):
    error = b'data: {"error": {"message": "out of memory", "type": "server_error", "code": 500}}\n\n'
    with model_server(lambda _: [SSE_HEAD, error]) as server:
        config = write_config(tmp_path, server.url, "http://127.0.0.1:9/v1")
        said = call("check", "upstream", "default", "--config", config, "--model", "m")
    assert (said.exit_code, said.stdout) == (1, "")
    began = f"upstream default, {server.url}: The upstream model server sent an error in its stream: "
    assert said.stderr == f"{began}out of memory\n"


def test_check_config_says_what_would_be_served(tmp_path, monkeypatch):
    monkeypatch.setenv("A_KEY", "secret")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    upstreams = {"default": {"base_url": "http://127.0.0.1:1/v1"}, "other": {"base_url": "http://127.0.0.1:2/v1"}}
    auditor = {"base_url": "http://127.0.0.1:3/v1", "api_key_env": "A_KEY", "depth": "annotate"}
    tenants = {"all": {"policy": "loose"}, "acme": {"policy": "test", "upstream": "other"}}
    config = write_config(tmp_path, "", "", upstreams=upstreams, auditor=auditor, tenants=tenants)
    loose = "version: 1\nthinking: {mode: monitor}\nthresholds: {harmful: 0.4}\n"
    (tmp_path / "policies" / "loose.yaml").write_text(loose)
    monkeypatch.chdir(tmp_path)
    said = call("check", "config")
    assert said.exit_code == 0
    assert said.stdout.splitlines() == [
        "listens on:  127.0.0.1:8080",
        "upstream:    default  http://127.0.0.1:1/v1",
        "upstream:    other  http://127.0.0.1:2/v1",
        "auditor:     DloadingX/GuardTrace-VL-3B  openai  http://127.0.0.1:3/v1  depth annotate",
        "tenant:      acme  policy test  upstream other  keys 0",
        "tenant:      all  policy loose  upstream default  keys 0  without a key",
    ]
    warnings = said.stderr.splitlines()
    assert all(line.startswith("warning: ") for line in warnings)
    assert any("policy loose: thinking is guarded less than the answer" in line for line in warnings)
    assert any("so its published scores don't hold" in line for line in warnings)
    assert any(line.startswith("warning: policy loose: thresholds.harmful has no effect") for line in warnings)
    assert "warning: tenants.acme: no key, and not anonymous_tenant: nobody is served as it" in warnings
    assert call("check", "config", config).stdout == said.stdout


def test_check_config_says_every_problem_that_serve_says(tmp_path, monkeypatch):
    monkeypatch.delenv("NOT_SET", raising=False)
    auditor = {"base_url": "http://127.0.0.1:3/v1", "api_key_env": "NOT_SET"}
    config = write_config(tmp_path, "http://127.0.0.1:1/v1", "", auditor=auditor, tenants={"all": {"policy": "absent"}})
    said, served = call("check", "config", config), call("serve", "--config", config)
    assert (said.exit_code, said.stdout) == (2, "")
    assert said.stderr == served.stderr
    assert "NOT_SET isn't set" in said.stderr
    assert "no absent.yaml" in said.stderr


def test_a_file_of_authorities_that_cant_be_used_is_a_problem_of_the_settings(tmp_path):
    upstreams = {"default": {"base_url": "https://127.0.0.1:1/v1", "ca_file": "ca.pem"}}
    config = write_config(tmp_path, "", "http://127.0.0.1:2/v1", upstreams=upstreams)
    said, served = call("check", "config", config), call("serve", "--config", config)
    assert (said.exit_code, served.exit_code) == (2, 2)
    assert said.stderr == served.stderr
    path = tmp_path / "ca.pem"
    place = "upstreams.default.ca_file"
    assert re.fullmatch(
        rf"{re.escape(str(config))}:\d+: {place}: {re.escape(str(path))} can't be read: No such file .*\n", said.stderr
    )
    private_authority(path)
    assert call("check", "config", config).exit_code == 0


@pytest.mark.parametrize("command", [["check", "config"], ["check", "middleware", "--config"]])
def test_an_auditor_that_isnt_installed_is_found(command, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "guardtrace_proxy.auditor.transformers", None)
    auditor = {"backend": "transformers", "model": "builtin:nano"}
    upstream = {"base_url": "http://127.0.0.1:1/v1"} if "config" in command else {}
    config = write_config(tmp_path, "", "", auditor=auditor, upstreams={"default": upstream})
    said = call(*command, config)
    assert (said.exit_code, said.stdout) == (2, "")
    assert said.stderr.startswith("auditor.backend: transformers needs ")
    assert "pip install '.[local]' in a checkout" in said.stderr


def test_check_config_warns_of_the_demonstration_model(tmp_path):
    pytest.importorskip("torch", reason="the embedded auditor needs the extra `local`")
    auditor = {"backend": "transformers", "model": "builtin:nano"}
    config = write_config(tmp_path, "http://127.0.0.1:1/v1", "", auditor=auditor)
    said = call("check", "config", config)
    assert said.exit_code == 0
    assert said.stderr == "warning: auditor builtin:nano is for demonstration and tests: it doesn't protect people\n"


def test_check_config_asks_nobody(tmp_path):
    with model_server(lambda _: []) as server:
        config = write_config(tmp_path, server.url, server.url)
        assert call("check", "config", config).exit_code == 0
    assert server.requests == []


def test_check_middleware_reads_the_settings_as_a_model_server_would(tmp_path):
    config = write_config(tmp_path, "http://127.0.0.1:1/v1", "http://127.0.0.1:2/v1")
    said = call("check", "middleware", "--config", config)
    assert said.exit_code == 2
    assert "upstreams.default.base_url: has no effect inside a model server" in said.output
    settings = yaml.safe_load(config.read_text("utf-8"))
    del settings["upstreams"]
    config.write_text(yaml.safe_dump({**settings, "server": {"passthrough": ["/tokenize"]}}), "utf-8")
    said = call("check", "middleware", "--config", config)
    assert said.exit_code == 0
    assert said.output.splitlines()[0].startswith("audited:         /v1/chat/completions")
    assert said.output.splitlines()[1:] == [
        "passes, no key:  /health, /metrics",
        "passes, a key:   /tokenize",
        "tenants:         all",
    ]


def test_check_middleware_warns_of_a_key_that_vllm_asks_for_and_nobody_sends(tmp_path, monkeypatch):
    config = tmp_path / "guardtrace.yaml"
    auditor = {"base_url": "http://127.0.0.1:2/v1", "model": "guard"}
    settings = {"auditor": auditor, "tenants": {"all": {"policy": "balanced"}}, "anonymous_tenant": "all"}
    config.write_text(yaml.safe_dump(settings), "utf-8")
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    said = call("check", "middleware", "--config", config)
    assert said.exit_code == 0
    assert said.stderr.startswith("warning: VLLM_API_KEY is set, but ")
    assert "upstreams: {default: {api_key_env: VLLM_API_KEY}}" in said.stderr
    named = {**settings, "upstreams": {"default": {"api_key_env": "VLLM_API_KEY"}}}
    config.write_text(yaml.safe_dump(named), "utf-8")
    assert call("check", "middleware", "--config", config).stderr == ""
    monkeypatch.delenv("VLLM_API_KEY")
    config.write_text(yaml.safe_dump(settings), "utf-8")
    assert call("check", "middleware", "--config", config).stderr == ""


def test_a_demo_trace_has_any_name():
    console = Console(file=io.StringIO(), width=80)

    class Played:
        async def play(self, trace, _):
            return Comparison(trace)

    anyio.run(_play_all, Played(), [a_trace(name="[/x]")], console)
    assert "[/x]" in console.file.getvalue()


def test_check_config_tells_where_nobody_is_served(tmp_path):
    config = tmp_path / "guardtrace.yaml"
    url = "http://127.0.0.1:1/v1"
    settings = {
        "upstreams": {"default": {"base_url": url}},
        "auditor": {"base_url": url, "model": "guard"},
        "tenants": {},
    }
    config.write_text(yaml.safe_dump(settings), "utf-8")
    assert "tenants: there are none, so every request is refused with 401" in call("check", "config", config).stderr


def test_a_built_in_auditor_that_there_isnt_is_told_before_a_hub_is_asked(tmp_path):
    told = "there is no builtin:nanoo: the only built-in is builtin:nano\n"
    auditor = {"backend": "transformers", "model": "builtin:nanoo"}
    config = write_config(tmp_path, "http://127.0.0.1:1/v1", "", auditor=auditor)
    for arguments in (["check", "config", config], ["serve", "--config", config, "--port", "0"]):
        said = call(*arguments)
        assert (said.exit_code, said.stdout) == (2, "")
        assert re.fullmatch(rf"{re.escape(str(config))}:\d+: auditor\.model: {told}", said.stderr)
    said = call("demo", "--model", "builtin:nanoo")
    assert (said.exit_code, said.stdout, said.stderr) == (2, "", f"--model: {told}")
    said = call("auditor", "check", "builtin:nanoo")
    assert (said.exit_code, said.stdout, said.stderr) == (1, "", f"auditor.model: {told}")


def test_a_servers_own_model_may_have_any_name(tmp_path):
    auditor = {"base_url": "http://127.0.0.1:2/v1", "model": "builtin:nanoo", "depth": "annotate"}
    config = write_config(tmp_path, "http://127.0.0.1:1/v1", "", auditor=auditor)
    assert call("check", "config", config).exit_code == 0


def test_check_middleware_tells_doubts_as_check_config_does(tmp_path):
    config = tmp_path / "guardtrace.yaml"
    settings = {
        "auditor": {"backend": "transformers", "model": "builtin:nano"},
        "tenants": {"all": {"policy": "balanced"}},
    }
    config.write_text(yaml.safe_dump(settings), "utf-8")
    said = call("check", "middleware", "--config", config)
    assert said.exit_code == 0
    assert "auditor builtin:nano is for demonstration and tests" in said.stderr
    assert "tenants.all: no key, and not anonymous_tenant: nobody is served as it" in said.stderr


def test_check_upstream_with_a_wrong_config(tmp_path):
    config = write_config(tmp_path, "http://a/v1", "http://b/v1", zzz=1)
    said = call("check", "upstream", "default", "--config", config)
    assert said.exit_code == 2
    assert "zzz: unknown key" in said.stderr
    assert call("check", "upstream", "default", "--config", tmp_path / "absent.yaml").exit_code == 2


def test_fetch_prompt_offline_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(published.fetch_prompt, "__kwdefaults__", {
        **published.fetch_prompt.__kwdefaults__, "source": "http://127.0.0.1:9/{commit}/p.txt"
    })  # fmt: skip
    said = call("auditor", "fetch-prompt", "--commit", "a" * 40, "--sha256", "b" * 64)
    assert (said.exit_code, said.stdout) == (1, "")
    assert "can't be reached" in said.stderr
    assert "Offline? Fetch it on another machine" in said.stderr
    assert not (tmp_path / "data").exists()


def test_auditor_check_tells_verdicts_and_speeds(tmp_path):
    pytest.importorskip("torch", reason="the embedded auditor needs the extra `local`")
    said = call("auditor", "check", "builtin:nano", "--seconds", "0.1")
    assert (said.exit_code, said.stderr) == (0, "")
    assert re.search(r"^architecture: +Qwen2_5_VLForConditionalGeneration$", said.stdout, re.M)
    assert re.search(r"^device: +(cpu|cuda)", said.stdout, re.M)
    for depth in ("label", "annotate"):
        for trace in ("benign", "harmful", "harmful image"):
            assert re.search(rf"^{depth} +{trace} +level [\d.]+ +risk \d\.\d\d +[\d,]+ ms$", said.stdout, re.M)
        assert re.search(rf"^{depth}: +[\d.,]+ audits a second, enough for about [\d.,]+ streams", said.stdout, re.M)
    assert re.search(
        r"^prefill: +about [\d,]+ tokens a second\ndecode: +about [\d,]+ tokens a second$", said.stdout, re.M
    )
    assert "note: auditor builtin:nano is for demonstration and tests" in said.stdout


def judging_server(body: dict[str, Any]) -> Iterable[bytes]:
    return thinker(body) if not body else judging(by_word)(body)


def test_auditor_check_of_a_served_model_as_json(monkeypatch):
    monkeypatch.setenv("GUARD_KEY", "secret")
    with model_server(judging_server) as server:
        options = ["--base-url", server.url, "--api-key-env", "GUARD_KEY", "--seconds", "0.1", "--json"]
        said = call("auditor", "check", "thinker-8b", *options)
    assert said.exit_code == 0
    told = json.loads(said.stdout)
    assert told["model"] == "thinker-8b"
    assert [one["level"] for one in told["verdicts"] if one["depth"] == "annotate"] == ["0"] * 3
    assert told["speeds"][-1]["depth"] == "annotate"
    assert told["prefill_tokens_per_second"] is None
    assert server.requests[-1][1]["authorization"] == "Bearer secret"


def test_auditor_check_over_tls_with_a_private_authority(tmp_path):
    ca_file = tmp_path / "ca.pem"
    with model_server(judging_server, private_authority(ca_file)) as server:
        options = ["--base-url", server.url, "--seconds", "0.1"]
        assert call("auditor", "check", "thinker-8b", *options, "--ca-file", ca_file).exit_code == 0
        said = call("auditor", "check", "thinker-8b", *options)
    assert (said.exit_code, said.stdout) == (1, "")
    assert "can't be reached" in said.stderr


@pytest.mark.parametrize(
    ("base_url", "content", "told"),
    [
        ("https://127.0.0.1:9/v1", "words", "--ca-file: {} holds no certificate, or one that can't be read: expected"),
        ("https://127.0.0.1:9/v1", None, "--ca-file: {} can't be read: No such file or directory"),
        ("http://127.0.0.1:9/v1", "words", "--ca-file has no effect without a --base-url that begins with https://"),
        (None, "words", "--ca-file has no effect without a --base-url that begins with https://"),
    ],
)
def test_auditor_check_refuses_a_file_of_authorities_that_cant_be_used(tmp_path, base_url, content, told):
    ca_file = tmp_path / "ca.pem"
    if content is not None:
        ca_file.write_text(content)
    options = [] if base_url is None else ["--base-url", base_url]
    said = call("auditor", "check", "guard", *options, "--ca-file", ca_file)
    assert (said.exit_code, said.stdout) == (2, "")
    assert said.stderr.startswith(told.format(ca_file))


def test_auditor_check_says_what_is_wrong_in_one_sentence(tmp_path, monkeypatch):
    pytest.importorskip("torch", reason="the extra `local` isn't installed")
    said = call("auditor", "check", tmp_path / "nothing")
    assert (said.exit_code, said.stdout) == (1, "")
    assert "there is no such folder" in said.stderr
    assert said.stderr.count("\n") == 1
    said = call("auditor", "check", "x", "--base-url", "http://127.0.0.1:9/v1")
    assert (said.exit_code, said.stdout) == (1, "")
    assert said.stderr.startswith("http://127.0.0.1:9/v1/models can't be reached")
    monkeypatch.setenv("BROKEN", "sk-abc\n")
    said = call("auditor", "check", "x", "--api-key-env", "BROKEN")
    assert (said.exit_code, said.stdout) == (2, "")
    assert said.stderr.startswith("--api-key-env: the environment variable BROKEN holds a line break")
    said = call("auditor", "check", "x", "--api-key-env", "NOT_SET")
    assert said.exit_code == 2
    assert "NOT_SET isn't set" in said.stderr
