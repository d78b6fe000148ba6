"""What the docs say is so: commands run, settings load, links lead somewhere, every key is named."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from enum import Enum
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from typer.testing import CliRunner

from guardtrace_proxy.auditor.protocol import FailureKind
from guardtrace_proxy.auditor.published import MODEL
from guardtrace_proxy.cli.app import app
from guardtrace_proxy.gate.diagram import mermaid
from guardtrace_proxy.policy.loading import PRESETS, load_policy
from guardtrace_proxy.policy.schema import Policy
from guardtrace_proxy.server.config import load_config, otlp_is_installed
from guardtrace_proxy.server.inner_config import load_inner_config
from guardtrace_proxy.server.settings import ConfigFile
from guardtrace_proxy.wire.chat_fields import TEMPLATE_KWARGS, UNFOLLOWED
from guardtrace_trainer.annotation.jury import Jury
from guardtrace_trainer.corpus.generate import Models
from guardtrace_trainer.settings import read_settings
from tests.docs.pages import PAGES, ROOT, Block, blocks, commands, leaves_of

SLOW = ("guardtrace demo",)
"""What has tests of its own."""
COMMANDS = [
    (block, command)
    for block in blocks("bash", "sh", "shell", "console")
    for command in commands(block.text)
    if command.startswith("guardtrace ")
]
RUN = [
    (block, command)
    for block, command in COMMANDS
    if block.reason is None and not command.startswith(("guardtrace serve", *SLOW))
]
YAML = list(blocks("yaml"))
TRAINERS: dict[str, type[BaseModel]] = {"models": Models, "judges": Jury}
"""Settings files of the trainer, by a key that only they have."""
LINK = re.compile(r"(?<!!)\[[^\]]*\]\((?P<target>[^)\s]+)\)")


def read(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def rows_of(page: str) -> dict[str, str]:
    """The defaults that a page's tables give, by key."""
    found: dict[str, str] = {}
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) >= 3:
            found |= dict.fromkeys(re.findall(r"`([\w.]+)`", cells[0]), cells[1])
    return found


def test_there_are_commands_settings_and_links() -> None:
    assert len(RUN) >= 4
    assert len(YAML) >= 6


@pytest.mark.parametrize(("block", "command"), RUN, ids=[f"{block.where} {command}" for block, command in RUN])
def test_a_documented_command_works(block: Block, command: str, tmp_path: Path) -> None:
    for name in ("examples", "policies"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("node_modules"))
    shutil.copy(ROOT / "examples" / "guardtrace.yaml", tmp_path / "guardtrace.yaml")
    program = [sys.executable, "-c", "from guardtrace_proxy.cli.app import main; main()"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}
    done = subprocess.run(
        [*program, *shlex.split(command, comments=True)[1:]],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr


def test_every_command_of_the_program_is_documented() -> None:
    shown = "\n".join(page.read_text("utf-8") for page in PAGES)
    groups = [(group.name, group.typer_instance) for group in app.registered_groups]
    names = [command.callback.__name__ for command in app.registered_commands if command.callback]
    for group, inner in groups:
        for command in inner.registered_commands if inner else ():
            own = command.name or (command.callback.__name__ if command.callback else "")
            names.append(f"{group} {own}")
    assert len(names) > 5
    for name in names:
        assert f"guardtrace {name}" in shown, name


@pytest.mark.parametrize("block", YAML, ids=[block.where for block in YAML])
def test_documented_settings_load(block: Block, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "policies", tmp_path / "policies")
    keys = yaml.safe_load(block.text)
    if "tracing" in keys and not otlp_is_installed():
        pytest.skip("the extra `otel` isn't installed")
    trainers = next((settings for key, settings in TRAINERS.items() if key in keys), None)
    if trainers is not None:
        path = tmp_path / "documented.yaml"
        path.write_text(block.text, "utf-8")
        read_settings(path, trainers)
    elif "version" in keys:
        path = tmp_path / "documented.yaml"
        path.write_text(block.text, "utf-8")
        load_policy(path)
    else:
        path = tmp_path / "guardtrace.yaml"
        path.write_text(block.text, "utf-8")
        over_http = any("base_url" in upstream for upstream in keys.get("upstreams", {}).values())
        load = load_config if over_http else load_inner_config
        load(path, {"UPSTREAM_API_KEY": "documented", "VLLM_API_KEY": "documented"})


def test_settings_for_inside_vllm_name_the_key_that_is_exported_beside_them() -> None:
    section = read("docs/doors.md").partition("## Inside vLLM")[2].partition("\n## ")[0]
    assert "export GUARDTRACE_CONFIG=guardtrace.yaml VLLM_API_KEY=" in section
    (block,) = re.findall(r"```yaml\n(.*?)```", section, re.DOTALL)
    assert yaml.safe_load(block)["upstreams"]["default"]["api_key_env"] == "VLLM_API_KEY"


def test_the_published_weights_are_shown_at_the_depth_they_were_trained_for() -> None:
    for block in YAML:
        auditor = yaml.safe_load(block.text).get("auditor", {})
        if auditor.get("model") == MODEL:
            assert auditor.get("depth") == "annotate", block.where


def test_nothing_is_installed_by_a_name_that_isnt_published() -> None:
    files = [*PAGES, *(ROOT / "guardtrace_proxy").rglob("*.py"), *(ROOT / "examples").glob("*.*")]
    for file in files:
        assert not re.search(r"pip install ['\"]?guardtrace", file.read_text("utf-8")), file


def test_every_setting_is_documented_with_its_default() -> None:
    page = read("docs/configuration.md")
    named = {key: f"`{value}`" for key, value in re.findall(r"`([\w.]+)` \(default `([^`]+)`\)", page)}
    check_defaults(ConfigFile, rows_of(page) | named, beside={"upstreams.NAME.thinking"})


def test_every_policy_key_is_documented_with_its_default() -> None:
    # The answer's keys share a row that refers to those of thinking.
    rows = {key: "none" if "as for" in shown else shown for key, shown in rows_of(read("docs/policies.md")).items()}
    rows |= {f"answer.{key}": rows[f"thinking.{key}"] for key in ("mode", "max_lag")}
    check_defaults(Policy, rows, beside={"balanced", "strict", "monitor", "pass", "flag", "redact", "cut"})


def check_defaults(model: type[BaseModel], rows: dict[str, str], beside: set[str]) -> None:
    """The rows name exactly the model's settings, and ``beside``, with the defaults as YAML writes them."""
    leaves = dict(leaves_of(model))
    assert rows.keys() - beside == leaves.keys()
    for key, default in leaves.items():
        plain = default.value if isinstance(default, Enum) else default
        if default is PydanticUndefined:
            assert rows[key] == "required", key
        elif plain is None:
            assert rows[key] == "none", key
        else:
            assert rows[key] == f"`{plain}`" or yaml.safe_load(rows[key].strip("`")) == plain, key


def test_defaults_are_those_of_the_preset_balanced() -> None:
    balanced = load_policy(PRESETS / "balanced.yaml").policy
    assert balanced == Policy(version=1)


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_relative_links_lead_somewhere(page: Path) -> None:
    for found in LINK.finditer(re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)):
        target, _, anchor = found["target"].partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), f"{found['target']} leads nowhere"
        if anchor:
            assert anchor in anchors(file), f"{found['target']}: no such heading"


def anchors(page: Path) -> set[str]:
    """Headings as GitHub links to them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_state_diagram_is_the_tables() -> None:
    assert read("docs/gate-states.mmd") == mermaid()
    assert f"```mermaid\n{mermaid()}```" in read("docs/gate.md")


def test_errors_names_every_code_and_refused_field() -> None:
    page = read("docs/errors.md")
    source = "\n".join(path.read_text("utf-8") for path in (ROOT / "guardtrace_proxy" / "server").glob("*.py"))
    codes = set(re.findall(r'code="([a-z_]+)"', source))
    assert len(codes) > 5
    for name in codes | UNFOLLOWED.keys() | TEMPLATE_KWARGS:
        assert f"`{name}`" in page, name


def test_the_auditor_page_names_every_failure() -> None:
    page = read("docs/auditor.md")
    for kind in FailureKind:
        assert f"| `{kind.value}` |" in page


NAMED_FILE = re.compile(r"`((?:policies|examples|guardtrace_proxy|tests|docs|server)/[\w./-]+)`")


def test_no_page_names_what_isnt_there() -> None:
    for page in PAGES:
        for name in NAMED_FILE.findall(page.read_text("utf-8")):
            assert (ROOT / name).exists() or (ROOT / "guardtrace_proxy" / name).exists(), f"{page.name}: {name}"


def test_explain_shows_placeholders_in_brackets_whole() -> None:
    shown = CliRunner().invoke(app, ["policy", "explain", str(ROOT / "policies" / "acme.yaml")], env={"COLUMNS": "200"})
    assert '"[withheld by policy]"' in shown.stdout
