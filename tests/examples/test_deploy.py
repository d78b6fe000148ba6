"""``examples/deploy`` fits the program: its settings, commands, ports, stop and metrics. No image is built here, and no
cluster is asked."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from itertools import takewhile
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from typer.testing import CliRunner

from guardtrace_proxy import __version__
from guardtrace_proxy.auditor.breaker import Circuit
from guardtrace_proxy.auditor.published import prompt_path
from guardtrace_proxy.cli.app import app
from guardtrace_proxy.cli.serve import LAST_SECONDS
from guardtrace_proxy.cli.workers import DID_NOT_START
from guardtrace_proxy.server.config import Config, load_config
from guardtrace_proxy.server.service import CLOSE_SECONDS, PROBE_AGAIN_SECONDS
from guardtrace_proxy.server.settings import ServerSettings
from tests.cli import serving as cli_serving
from tests.cli.serving import serving
from tests.docs.test_docs import anchors
from tests.ports import free_port
from tests.server.scripted import SSE_HEAD, by_word, judging, model_server, stream
from tests.waiting import eventually

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "examples" / "deploy"
PAGE = (ROOT / "docs" / "operations.md").read_text("utf-8")
TO_END_SECONDS = LAST_SECONDS + 4 * CLOSE_SECONDS
"""After ``server.drain_ms``, as ``serve --workers`` waits before it kills."""
SPARE_SECONDS = 5
NOBODYS = "0" * 64


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def assert_in_the_program(words: list[str]) -> None:
    """The command is there, with the options that are given."""
    assert words[0].rpartition("/")[2] == "guardtrace"
    options = [word.partition("=")[0] for word in words if word.startswith("--")]
    names = list(takewhile(re.compile(r"[a-z][a-z-]*").fullmatch, words[1:]))
    shown = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}).invoke(app, [*names, "--help"])
    assert shown.exit_code == 0, shown.output
    assert set(options) <= set(re.findall(r"--[a-z0-9-]+", shown.stdout)), words


# Kubernetes


MANIFESTS = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text("utf-8")))


def manifest(kind: str) -> dict[str, Any]:
    (found,) = [each for each in MANIFESTS if each["kind"] == kind]
    return found


POD: dict[str, Any] = manifest("Deployment")["spec"]["template"]
(PROXY,) = POD["spec"]["containers"]
PORTS = {each["name"]: each["containerPort"] for each in PROXY["ports"]}
ENVIRON = {each["name"]: "a key" for each in PROXY["env"]}


class Mount:
    """A folder with the ConfigMap in it, linked as the kubelet does it and swapped in one step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = folder / "guardtrace.yaml"
        self._versions = 0
        folder.mkdir()

    def fill(self, data: dict[str, str]) -> None:
        self._versions += 1
        version = self.folder / f"..{self._versions}"
        version.mkdir()
        for key, text in data.items():
            (version / key).write_text(text, "utf-8")
            link = self.folder / key
            if not link.is_symlink():
                link.symlink_to(Path("..data") / key)
        new = self.folder / "..new"
        new.symlink_to(version.name)
        new.replace(self.folder / "..data")


@pytest.fixture(name="mount")
def mounted(tmp_path: Path) -> Mount:
    mount = Mount(tmp_path / "mounted")
    mount.fill(manifest("ConfigMap")["data"])
    return mount


@pytest.fixture(name="config")
def configured(mount: Mount) -> Config:
    return load_config(mount.settings, ENVIRON)


def test_check_config_takes_the_config_map_and_warns_of_nothing(mount: Mount, tmp_path: Path) -> None:
    prompt = tmp_path / "share" / "guardtrace-proxy" / "published-prompt.txt"
    prompt.parent.mkdir(parents=True)
    prompt.write_text("The published prompt.", "utf-8")
    runner = CliRunner(env={**ENVIRON, "XDG_DATA_HOME": str(tmp_path / "share"), "NO_COLOR": "1"})
    done = runner.invoke(app, ["check", "config", str(mount.settings)])
    assert done.exit_code == 0, done.output
    assert f"0.0.0.0:{PORTS['http']}\n" in done.output
    assert "warning" not in done.output


def test_the_config_map_has_no_key_that_anybody_knows(config: Config) -> None:
    assert {key for tenant in config.tenants.values() for key in tenant.keys} == {f"sha256:{NOBODYS}"}
    assert config.anonymous_tenant is None


def test_all_of_the_config_map_is_mounted_where_the_image_looks() -> None:
    (volume,), (mount,) = POD["spec"]["volumes"], PROXY["volumeMounts"]
    assert volume["name"] == mount["name"]
    assert volume["configMap"] == {
        "name": manifest("ConfigMap")["metadata"]["name"]
    }  # no items: a new key is there, too
    assert "subPath" not in mount
    assert f"{mount['mountPath']}/guardtrace.yaml" in ENTRYPOINT


def test_policies_of_the_config_map_are_its_own(config: Config, mount: Mount) -> None:
    shown = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["policy", "explain", str(mount.folder / "acme.yaml")])
    assert shown.exit_code == 0
    assert (
        set(config.policies) == {"acme"} == {Path(key).stem for key in manifest("ConfigMap")["data"]} - {"guardtrace"}
    )


def test_one_more_policy_is_one_more_key(mount: Mount) -> None:
    data = manifest("ConfigMap")["data"]
    settings = data["guardtrace.yaml"].replace("policy: acme", "policy: other")
    other = {"guardtrace.yaml": settings, "other.yaml": "version: 1\nextends: acme\n"}
    mount.fill({**data, **other})
    assert set(load_config(mount.settings, ENVIRON).policies) == {"other"}


def test_metrics_are_kept_from_all_but_prometheus() -> None:
    spec = manifest("NetworkPolicy")["spec"]
    assert spec["policyTypes"] == ["Ingress"]
    open_to_all = {port["port"] for rule in spec["ingress"] if "from" not in rule for port in rule["ports"]}
    kept = {port["port"] for rule in spec["ingress"] if rule.get("from") for port in rule["ports"]}
    assert (open_to_all, kept) == ({"http"}, {"metrics"})
    assert open_to_all | kept == set(PORTS)


def test_ports_are_those_of_the_settings(config: Config) -> None:
    assert {"http": config.server.port, "metrics": config.metrics.port} == PORTS
    assert (config.server.host, config.metrics.host) == ("0.0.0.0", "0.0.0.0")
    (of_service,) = manifest("Service")["spec"]["ports"]
    assert of_service["targetPort"] == "http"
    assert POD["metadata"]["annotations"]["prometheus.io/port"] == str(config.metrics.port)
    assert {int(port) for port in instruction("EXPOSE").split()} == set(PORTS.values())
    assert "--port" not in ENTRYPOINT


def test_the_grace_period_holds_the_pause_the_drain_and_the_end(config: Config) -> None:
    program, seconds = PROXY["lifecycle"]["preStop"]["exec"]["command"]
    assert program == "sleep"
    needed = int(seconds) + config.server.drain_ms / 1000 + TO_END_SECONDS
    grace = POD["spec"]["terminationGracePeriodSeconds"]
    assert grace >= needed + SPARE_SECONDS
    assert f"{grace} s" in section("Deploy")


def test_what_selects_pods_selects_these() -> None:
    labels = POD["metadata"]["labels"].items()
    (spread,) = POD["spec"]["topologySpreadConstraints"]
    selectors = [
        manifest("Deployment")["spec"]["selector"]["matchLabels"],
        manifest("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        manifest("Service")["spec"]["selector"],
        manifest("NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        spread["labelSelector"]["matchLabels"],
    ]
    assert all(selector and selector.items() <= labels for selector in selectors)
    assert manifest("Deployment")["spec"]["replicas"] > manifest("PodDisruptionBudget")["spec"]["maxUnavailable"]


def test_the_pod_runs_as_the_images_user_on_what_it_cant_change() -> None:
    of_pod, of_container = POD["spec"]["securityContext"], PROXY["securityContext"]
    assert instruction("USER") == f"{of_pod['runAsUser']}:{of_pod['runAsGroup']}"
    assert of_pod["runAsUser"] > 0
    assert of_pod["runAsNonRoot"]
    assert of_container["readOnlyRootFilesystem"]
    assert not of_container["allowPrivilegeEscalation"]
    assert of_container["capabilities"] == {"drop": ["ALL"]}


def test_held_bytes_are_a_quarter_of_the_memory(config: Config) -> None:
    memory = PROXY["resources"]["limits"]["memory"]
    assert memory.endswith("Gi")
    assert config.server.max_total_bytes * 4 == int(memory[:-2]) * 2**30


def test_the_image_is_this_version() -> None:
    assert PROXY["image"].endswith(f"/guardtrace-proxy:{__version__}")
    assert f"guardtrace-proxy:{__version__} " in (DEPLOY / "Dockerfile").read_text("utf-8")


def test_a_rollout_with_an_auditor_that_doesnt_answer_stops_at_one_pod(
    mount: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readiness alone would let it replace every pod that serves well."""
    for name, value in ENVIRON.items():
        monkeypatch.setitem(cli_serving.ENVIRON, name, value)
    data = manifest("ConfigMap")["data"]
    wrong = data["guardtrace.yaml"].replace("guardtrace-auditor:9001", f"127.0.0.1:{free_port()}")
    mount.fill({**data, "guardtrace.yaml": wrong})
    options = [word for word in ENTRYPOINT[2:] if word != "--config" and not word.endswith(".yaml")]
    with serving(mount.settings, *options, "--metrics-port", "0") as running:
        status = {
            kind: httpx.get(running.url + PROXY[f"{kind}Probe"]["httpGet"]["path"], trust_env=False).status_code
            for kind in ("startup", "readiness", "liveness")
        }
    assert status == {"startup": 503, "readiness": 200, "liveness": 200}
    strategy = manifest("Deployment")["spec"]["strategy"]["rollingUpdate"]
    assert strategy == {"maxSurge": 1, "maxUnavailable": 0}


def test_a_pod_has_time_for_several_tries_of_the_audit() -> None:
    probe = PROXY["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 10 * PROBE_AGAIN_SECONDS


def test_the_entry_point_serves_the_config_map(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its probes are answered, a key that is put into the ConfigMap counts, decisions go to standard output, SIGTERM ends it."""
    for name, value in ENVIRON.items():
        monkeypatch.setitem(cli_serving.ENVIRON, name, value)
    leak = [SSE_HEAD, *stream("It starts harmlessly, and then the HARM is spelt out.", "No.")]
    key = "gt-deployed"
    with model_server(lambda _: leak) as upstream, model_server(judging(by_word)) as guard:
        data = manifest("ConfigMap")["data"]
        settings = data["guardtrace.yaml"].replace("http://thinking-model:8000/v1", upstream.url)
        settings = settings.replace("http://guardtrace-auditor:9001/v1", guard.url)
        mount.fill({**data, "guardtrace.yaml": settings})
        options = [word for word in ENTRYPOINT[2:] if word != "--config" and not word.endswith(".yaml")]
        with serving(mount.settings, *options, "--metrics-port", "0") as running:
            for probe in (PROXY[f"{kind}Probe"] for kind in ("startup", "readiness", "liveness")):
                assert probe["httpGet"]["port"] == "http"
                url = running.url + probe["httpGet"]["path"]
                assert eventually(lambda url=url: httpx.get(url, trust_env=False).status_code == 200)
            mount.fill({**data, "guardtrace.yaml": settings.replace(NOBODYS, hashlib.sha256(key.encode()).hexdigest())})
            assert eventually(lambda: "settings reloaded" in running.log.read_text())
            asked = {"model": "m", "messages": [{"role": "user", "content": "Please help."}], "stream": True}
            reply = httpx.post(
                running.url + "/v1/chat/completions",
                json=asked,
                headers={"authorization": f"Bearer {key}"},
                trust_env=False,
                timeout=30,
            )
            assert "This response was stopped by policy." in reply.text
            assert running.stop() == 0
            lines = [json.loads(line) for line in running.log.read_text().splitlines() if line.startswith("{")]
            assert "cut" in [line["action"] for line in lines if line.get("kind") == "decision"]


# The settings' folder, as examples/README.md makes it


README = (ROOT / "examples" / "README.md").read_text("utf-8")


def commands(start: str) -> list[str]:
    """Those of README's block with a line that begins so, each on one line."""
    (block,) = [text for text in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) if f"\n{start}" in f"\n{text}"]
    return block.replace("\\\n", " ").splitlines()


@pytest.fixture(name="settings")
def made(tmp_path: Path) -> Path:
    """Its lines, in a checkout."""
    for name in ("examples", "policies"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("node_modules"))
    lines = "\n".join(commands("mkdir settings"))
    subprocess.run(["sh", "-e", "-c", lines], cwd=tmp_path, check=True, timeout=60)
    return tmp_path / "settings"


def test_the_settings_folder_is_whole_by_itself(settings: Path, tmp_path: Path) -> None:
    alone = settings.rename(tmp_path / "alone")
    shutil.rmtree(tmp_path / "policies")
    config = load_config(alone / "guardtrace.yaml", {})
    assert config.policies_dir == alone / "policies"
    assert set(config.policies) == {"acme", "research"}


def test_the_container_is_run_as_it_is_built(settings: Path) -> None:
    """The image has the published prompt, takes the folder, and is told last where to listen."""
    build, run = map(shlex.split, commands("docker build"))
    given = {word.partition("=")[0] for word in build if word.startswith("PROMPT_")}
    assert (
        given
        == {"PROMPT_COMMIT", "PROMPT_SHA256"}
        <= {value.rstrip("=") for name, value in instructions() if name == "ARG"}
    )
    image = build[build.index("--tag") + 1]
    assert image == PROXY["image"]
    assert f"target={Path(ENTRYPOINT[ENTRYPOINT.index('--config') + 1]).parent}," in " ".join(run)
    assert (
        int(run[run.index("--stop-timeout") + 1]) >= ServerSettings().drain_ms / 1000 + TO_END_SECONDS + SPARE_SECONDS
    )
    more = run[run.index(image) + 1 :]
    options = [word for word in ENTRYPOINT[2:] if word != "--config" and not word.endswith(".yaml")]
    with serving(settings / "guardtrace.yaml", *options, *more, "--metrics-port", "0") as running:
        lines = [json.loads(line) for line in running.log.read_text().splitlines() if line.startswith("{")]
    (told,) = [line for line in lines if line["event"] == "serving"]
    assert (told["host"], told["metrics_host"]) == ("127.0.0.1", "127.0.0.1")


# The image


def instructions() -> list[tuple[str, str]]:
    text = (DEPLOY / "Dockerfile").read_text("utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(name, value) for name, _, value in (line.partition(" ") for line in lines)]


def instruction(name: str) -> str:
    """The last one, which counts."""
    return [value for each, value in instructions() if each == name][-1]


ENTRYPOINT: list[str] = json.loads(instruction("ENTRYPOINT"))


def test_the_image_runs_a_command_of_the_program_and_listens_everywhere() -> None:
    assert_in_the_program(ENTRYPOINT)
    assert ENTRYPOINT[ENTRYPOINT.index("--host") + 1] == "0.0.0.0"
    stages = [at for at, (name, _) in enumerate(instructions()) if name == "FROM"]
    assert instructions().index(("USER", instruction("USER"))) > stages[-1]


def test_the_image_is_installed_as_the_docs_say() -> None:
    runs = [" ".join(value.split()) for name, value in instructions() if name == "RUN"]
    wheel, _, venv, install, fetch = runs
    assert re.search(r"pip wheel .*--no-deps .*--wheel-dir /wheels \.$", wheel)
    assert venv.startswith("python -m venv /opt/guardtrace")
    assert install.startswith("/opt/guardtrace/bin/pip install ")
    assert "--constraint constraints.txt" in install
    assert "constraints.txt" in section("Upgrade")
    (command,) = re.findall(r"then (guardtrace .*); fi", fetch)
    assert_in_the_program(shlex.split(command))
    declared = {value.partition("=")[0] for name, value in instructions() if name == "ARG"}
    assert set(re.findall(r"\$([A-Z_]\w+)", " ".join(runs))) == declared


def test_the_image_finds_the_published_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    environ = dict(re.findall(r"(\w+)=(\S+)", instruction("ENV")))
    assert environ["PATH"].startswith("/opt/guardtrace/bin:")
    monkeypatch.setenv("XDG_DATA_HOME", environ["XDG_DATA_HOME"])
    assert prompt_path() == Path("/usr/local/share/guardtrace-proxy/published-prompt.txt")


def test_what_the_wheel_is_built_from_is_in_the_context() -> None:
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    passed = {line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"}
    needed = [
        re.findall(rf"^{key} = (.+)$", project, re.MULTILINE)[0] for key in ("readme", "license-files", "packages")
    ]
    files = {name.partition("/")[0] for name in re.findall(r'"([^"]+)"', " ".join(needed))}
    assert files == {"README.md", "LICENSE", "NOTICE", "guardtrace_proxy", "trainer"}
    assert passed == {*files, "pyproject.toml", "constraints.txt"}
    assert all((ROOT / name).exists() for name in passed - {"constraints.txt"})


# systemd


def unit() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in (DEPLOY / "guardtrace.service").read_text("utf-8").splitlines():
        if line and not line.startswith(("#", "[")):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def test_the_units_commands_are_the_programs() -> None:
    (before,), (start,), (check, tell) = (unit()[f"Exec{what}"] for what in ("StartPre", "Start", "Reload"))
    for command in (before, start, check):
        assert_in_the_program(shlex.split(command))
    assert before == check
    assert shlex.split(before)[1:3] == ["check", "config"]
    assert shlex.split(start)[1] == "serve"
    assert shlex.split(before)[-1] in shlex.split(start)
    assert tell == "/bin/kill -HUP $MAINPID"


def test_the_units_command_checks_settings(settings: Path) -> None:
    (before,) = unit()["ExecStartPre"]
    words = shlex.split(before)[1:]
    file = settings / "guardtrace.yaml"
    right = file.read_text("utf-8")
    for text, is_right in ((right, True), (right + "\nunheard_of: 1\n", False)):
        file.write_text(text, "utf-8")
        done = CliRunner().invoke(app, [word.replace("/etc/guardtrace", str(settings)) for word in words])
        assert (done.exit_code == 0) == is_right, done.output


def test_the_unit_waits_for_the_end() -> None:
    (seconds,) = unit()["TimeoutStopSec"]
    assert int(seconds) >= ServerSettings().drain_ms / 1000 + TO_END_SECONDS + SPARE_SECONDS
    assert f"{seconds} s" in section("Deploy")
    assert unit()["KillMode"] == ["mixed"]


def test_the_unit_starts_no_server_again_that_cant_start() -> None:
    assert unit()["RestartPreventExitStatus"] == [str(DID_NOT_START)]
    assert unit()["Restart"] == ["on-failure"]


def test_the_units_folders_are_those_of_the_prompt_and_the_audit_log(monkeypatch: pytest.MonkeyPatch) -> None:
    (environ,), (state,), (logs,) = (unit()[key] for key in ("Environment", "StateDirectory", "LogsDirectory"))
    name, _, value = environ.partition("=")
    monkeypatch.setenv(name, value)
    assert prompt_path().parent == Path("/var/lib") / state
    assert f"/var/log/{logs}/audit.jsonl" in (DEPLOY / "guardtrace.service").read_text("utf-8")
    assert f"/var/log/{logs}/audit.jsonl" in section("Deploy")


def test_systemd_reads_the_unit(tmp_path: Path) -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze isn't installed")
    text = (DEPLOY / "guardtrace.service").read_text("utf-8")
    file = tmp_path / "guardtrace.service"
    file.write_text(text.replace("/opt/guardtrace/bin/guardtrace", sys.executable), "utf-8")
    done = subprocess.run(
        [program, "verify", "--man=no", file], capture_output=True, text=True, timeout=60, check=False
    )
    assert [line for line in done.stderr.splitlines() if "guardtrace.service" in line] == []


# Alerts. That their metrics and labels are real is looked at in tests/telemetry/test_names.py.

RULES = [
    rule
    for group in yaml.safe_load((DEPLOY / "prometheus-alerts.yml").read_text("utf-8"))["groups"]
    for rule in group["rules"]
]
DOCUMENTED = re.findall(
    r"^\| (.+) \| `(.+)` \|$",
    (ROOT / "docs" / "telemetry.md").read_text("utf-8").partition("| when | expression |")[2].partition("\n\n")[0],
    re.MULTILINE,
)


def essence(expression: str) -> list[str]:
    """Metrics, label values, times and thresholds in their order: all but how it is grouped."""
    return re.findall(
        r"guardtrace_\w+|\bup\b|\w+=~?\"[^\"]+\"|\[\w+\]|[<>=]=? [\d.]+|rate|increase|absent|\bor\b|quantile\([\d.]+",
        expression,
    )


def test_every_documented_alert_is_a_rule() -> None:
    assert len(DOCUMENTED) == len(RULES) == 14
    for (when, expression), rule in zip(DOCUMENTED, RULES, strict=True):
        assert f": {when}" in rule["annotations"]["summary"]
        assert essence(rule["expr"]) == essence(expression), when
        assert len(essence(expression)) > 1


@pytest.mark.parametrize("rule", RULES, ids=[rule["alert"] for rule in RULES])
def test_a_rule_says_how_long_how_bad_where_and_what_to_read(rule: dict[str, Any]) -> None:
    assert re.fullmatch(r"\d+m", rule["for"])
    assert rule["labels"]["severity"] in {"critical", "warning"}
    page, _, anchor = rule["annotations"]["docs"].partition("#")
    assert not anchor or anchor in anchors(ROOT / page)
    assert (ROOT / page).is_file()
    shown = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
    groups = [set(found.split(", ")) - {"le"} for found in re.findall(r"by \(([^)]+)\)", rule["expr"])]
    assert all(group == shown for group in groups)
    assert shown in ({"instance"}, {"tenant"}, {"job"})
    assert ("job" in shown) is rule["expr"].startswith("absent(")  # what is absent has no instance
    assert len(groups) == len(re.findall(r"\b(?:sum|max|avg)\b", rule["expr"]))


def test_the_alert_of_a_given_up_auditor_holds_in_every_state_of_an_outage() -> None:
    """The circuit is half open between two pauses, which mustn't begin ``for`` anew."""
    (rule,) = [rule for rule in RULES if rule["alert"] == "GuardTraceAuditorGivenUp"]
    (found,) = re.findall(r"^guardtrace_auditor_circuit\{state=\"(\w+)\"\} == ([01])$", rule["expr"])
    state, value = Circuit(found[0]), int(found[1])
    assert {now for now in Circuit if int(now is state) == value} == {Circuit.OPEN, Circuit.HALF_OPEN}


SHARES = [rule for rule in RULES if "replies_total" in rule["expr"]]


@pytest.mark.parametrize("rule", SHARES, ids=[rule["alert"] for rule in SHARES])
def test_a_share_is_of_what_is_counted_alike(rule: dict[str, Any]) -> None:
    """Above and below the line are the same groups and the same time, and all that is counted above is below, too."""
    above, below = rule["expr"].split("/")
    assert set(re.findall(r"by \(\w+\)|\[\w+\]", above)) == set(re.findall(r"by \(\w+\)|\[\w+\]", below))
    assert set(re.findall(r"guardtrace_\w+", above)) <= set(re.findall(r"guardtrace_\w+", below))
    assert "{" not in below


def test_rules_have_names_of_their_own() -> None:
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
