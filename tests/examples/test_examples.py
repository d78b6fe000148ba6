"""What a user copies works: the settings load, the client scripts run against the proxy over real sockets."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from guardtrace_proxy.cli.app import app
from guardtrace_proxy.demo.serving import served
from guardtrace_proxy.server.app import GuardTraceApp
from guardtrace_proxy.server.config import EXAMPLE_KEYS, Config, load_config
from guardtrace_proxy.server.tenants import Tenants
from tests.clients.driving import NODE_MODULES, lacking, node_program
from tests.server.scripted import DONE, SSE_HEAD, Script, by_word, chunk, http, judging, model_server, stream

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
KEY = re.compile(r"gt-example-[A-Za-z]+-[A-Za-z0-9_-]{43}")
MODELS = '{"object": "list", "data": [{"id": "thinker", "object": "model"}]}'
THINKING = "Seventeen times twenty is 340, and seventeen times three is 51, so the product must be 391."
LEAK = "It starts harmlessly enough for a while, and then the HARM is spelt out in small steps for all to see."


def replaying(thinking: str, answer: str) -> Script:
    """A model server with a list of models and one reply."""
    return lambda request: [SSE_HEAD, *stream(thinking, answer)] if request else [http(200, MODELS)]


@contextmanager
def example_proxy(upstream: Script, folder: Path, cut_shape: str = "content_filter") -> Iterator[str]:
    """``examples/guardtrace.yaml`` with its two servers' addresses replaced, a free port for metrics, and nothing else;
    cuts of tenant acme have ``cut_shape``."""
    with model_server(upstream) as model, model_server(judging(by_word)) as guard:
        text = (EXAMPLES / "guardtrace.yaml").read_text("utf-8")
        assert "http://127.0.0.1:9000/v1" in text
        assert "http://127.0.0.1:9001/v1" in text
        assert "port: 9464" in text
        text = text.replace("http://127.0.0.1:9000/v1", model.url).replace("http://127.0.0.1:9001/v1", guard.url)
        text = text.replace("port: 9464", "port: 0")
        (folder / "examples").mkdir()
        (folder / "examples" / "guardtrace.yaml").write_text(text, "utf-8")
        shutil.copytree(ROOT / "policies", folder / "policies")
        acme = folder / "policies" / "acme.yaml"
        policy = acme.read_text("utf-8")
        assert "cut_shape: content_filter" in policy
        acme.write_text(policy.replace("cut_shape: content_filter", f"cut_shape: {cut_shape}"), "utf-8")
        config = load_config(folder / "examples" / "guardtrace.yaml", {})
        with served(GuardTraceApp(config, environ={})) as url:
            yield url + "/v1"


def run(command: list[str], url: str, **environ: str) -> subprocess.CompletedProcess[str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "SYSTEMROOT") if name in os.environ}
    env = {**kept, "PYTHONUTF8": "1", "NO_PROXY": "127.0.0.1", "OPENAI_BASE_URL": url, **environ}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="module", params=["guardtrace.yaml", "guardtrace-local.yaml"])
def config(request: pytest.FixtureRequest) -> Config:
    return load_config(EXAMPLES / request.param, {})


def test_the_settings_load_with_policies_of_their_own(config: Config) -> None:
    assert set(config.policies) <= {"acme", "research"}
    assert all(not loaded.warnings for loaded in config.policies.values())


def test_every_policy_of_the_folder_is_used() -> None:
    names = {path.stem for path in (ROOT / "policies").glob("*.yaml")}
    assert names == {tenant.policy for tenant in load_config(EXAMPLES / "guardtrace.yaml", {}).tenants.values()}


def test_the_printed_keys_belong_to_their_tenants() -> None:
    tenants = Tenants(load_config(EXAMPLES / "guardtrace.yaml", {}))
    printed = set(KEY.findall((EXAMPLES / "README.md").read_text("utf-8")))
    assert {key.split("-")[2] for key in printed} == {"acme", "research"}
    for key in printed:
        tenant = tenants.of(f"Bearer {key}")
        assert tenant is not None
        assert tenant.name == key.split("-")[2]
        assert hashlib.sha256(key.encode()).hexdigest() in (EXAMPLES / "guardtrace.yaml").read_text("utf-8")


def test_whoever_keeps_a_printed_key_is_warned(config: Config, tmp_path: Path) -> None:
    assert config.tenants_with_a_known_key == list(config.tenants)
    printed = KEY.findall((EXAMPLES / "README.md").read_text("utf-8"))
    assert {f"sha256:{hashlib.sha256(key.encode()).hexdigest()}" for key in printed} == EXAMPLE_KEYS
    said = CliRunner().invoke(app, ["check", "config", str(EXAMPLES / "guardtrace.yaml")])
    for name in ("acme", "research"):
        assert f"warning: tenants.{name}: one of its keys is printed in the examples" in said.output


def test_no_other_page_has_a_printed_key() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        text = page.read_text("utf-8")
        assert not [key for key in EXAMPLE_KEYS if key in text], page.name


@pytest.mark.parametrize("script", ["client_python.py", "client_javascript.mjs", "client_curl.sh"])
@pytest.mark.parametrize("settings", ["guardtrace.yaml", "guardtrace-local.yaml"])
def test_the_key_of_the_scripts_is_served_under_both_settings(script: str, settings: str) -> None:
    (key,) = set(KEY.findall((EXAMPLES / script).read_text("utf-8")))
    assert Tenants(load_config(EXAMPLES / settings, {})).of(f"Bearer {key}") is not None


@pytest.mark.parametrize("script", ["client_python.py", "client_javascript.mjs", "client_curl.sh"])
def test_the_scripts_carry_a_printed_key(script: str) -> None:
    used = set(KEY.findall((EXAMPLES / script).read_text("utf-8")))
    assert len(used) == 1
    assert used < set(KEY.findall((EXAMPLES / "README.md").read_text("utf-8")))


def test_the_policies_differ_where_they_say_so(tmp_path: Path) -> None:
    with example_proxy(replaying(LEAK, "No."), tmp_path) as url:
        key = next(key for key in KEY.findall((EXAMPLES / "README.md").read_text("utf-8")) if "research" in key)
        done = run([sys.executable, str(EXAMPLES / "client_python.py")], url, OPENAI_API_KEY=key)
    assert done.returncode == 3
    assert "[refusal]\nStopped by the research policy." in done.stdout


@pytest.fixture
def scripts(tmp_path: Path) -> dict[str, list[str] | str]:
    """How each script is started, or why it can't be."""
    curl, node = shutil.which("curl"), node_program()
    places = [*os.environ.get("NODE_PATH", "").split(os.pathsep), EXAMPLES / "node_modules", NODE_MODULES]
    modules = next((Path(place) for place in places if place and (Path(place) / "openai").is_dir()), None)
    javascript: list[str] | str = "the npm package openai isn't installed (make clients)"
    if node is None:
        javascript = "node isn't installed"
    elif modules is not None:
        copied = tmp_path / "javascript"
        copied.mkdir()
        (copied / "node_modules").symlink_to(modules.resolve())
        javascript = [node, str(shutil.copy(EXAMPLES / "client_javascript.mjs", copied))]
    return {
        "python": [sys.executable, str(EXAMPLES / "client_python.py")],
        "javascript": javascript,
        "curl": "curl isn't installed" if curl is None else ["sh", str(EXAMPLES / "client_curl.sh")],
    }


@pytest.fixture(params=["python", "javascript", "curl"])
def command(request: pytest.FixtureRequest, scripts: dict[str, list[str] | str]) -> list[str]:
    found = scripts[request.param]
    if isinstance(found, str):
        lacking(found)
    return found


def test_a_client_shows_a_benign_reply_whole(command: list[str], tmp_path: Path) -> None:
    with example_proxy(replaying(THINKING, "It is 391."), tmp_path) as url:
        done = run(command, url)
    assert done.returncode == 0, done.stderr
    if command[0] == "sh":
        assert done.stdout == b"".join(stream(THINKING, "It is 391.")).decode()
    else:
        assert done.stdout == f"\n[thinking]\n{THINKING} \n[answer]\nIt is 391. \n\nfinish_reason: stop\n"


@pytest.mark.parametrize("cut_shape", ["content_filter", "refusal", "error"])
def test_a_client_handles_a_cut(command: list[str], tmp_path: Path, cut_shape: str) -> None:
    with example_proxy(replaying(LEAK, "I can't help with that."), tmp_path, cut_shape) as url:
        done = run(command, url)
    assert done.returncode == 3, done.stderr
    assert "HARM" not in done.stdout
    assert "This response was stopped by policy." in done.stdout + done.stderr
    assert done.stderr.endswith("stopped by policy\n")


def test_a_client_reports_what_was_refused_or_broke_off(command: list[str], tmp_path: Path) -> None:
    def breaking(request: object) -> list[bytes]:
        return [SSE_HEAD, chunk({"role": "assistant", "content": ""}), *stream(THINKING, "")[1:6]]

    with example_proxy(breaking, tmp_path) as url:
        refused = run(command, url, OPENAI_API_KEY="gt-nobody", MODEL="thinker")
        broken = run(command, url, MODEL="thinker")
    assert (refused.returncode, broken.returncode) == (1, 1)
    assert "No tenant has this API key" in refused.stdout + refused.stderr
    assert DONE.decode() not in broken.stdout


def test_the_python_client_sends_a_picture(tmp_path: Path) -> None:
    picture = ROOT / "guardtrace_proxy" / "demo" / "traces" / "page.png"
    with example_proxy(replaying("A page.", "I see a page."), tmp_path) as url:
        done = run([sys.executable, str(EXAMPLES / "client_python.py"), "What is this?", str(picture)], url)
    assert done.returncode == 0, done.stderr
    assert "I see a page." in done.stdout


def test_a_picture_that_cant_be_read_is_one_line(tmp_path: Path) -> None:
    picture = tmp_path / "nope.png"
    done = run(
        [sys.executable, str(EXAMPLES / "client_python.py"), "What is this?", str(picture)], "http://127.0.0.1:9"
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"{picture} can't be read: No such file or directory\n"
