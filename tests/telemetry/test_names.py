"""The metrics that page, dashboard and alert rules name are those that a running service has, with types and labels."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("torch", reason="the embedded auditor, which knows more of itself, needs the extra `local`")

from guardtrace_proxy.auditor.breaker import Circuit
from guardtrace_proxy.auditor.protocol import Depth
from guardtrace_proxy.gate import End
from guardtrace_proxy.policy.schema import Action
from guardtrace_proxy.server.record import LEFT, Reason
from tests.ports import free_port
from tests.server.dialects import CASES
from tests.server.running import ask, proxy
from tests.server.scripted import by_word, judging, model_server
from tests.telemetry.scraping import LISTENING, Scrape, scrape

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "telemetry.md").read_text("utf-8")
DASHBOARD = json.loads((ROOT / "examples" / "grafana-dashboard.json").read_text("utf-8"))
RULES = yaml.safe_load((ROOT / "examples" / "deploy" / "prometheus-alerts.yml").read_text("utf-8"))
NAME = re.compile(r"\b(?:guardtrace|process)_\w+|\bup(?=\{)")
ROW = re.compile(r"^\| `(guardtrace_\w+)` \| (\w+) \|([^|]*)\|", re.MULTILINE)
PARTS = {"histogram": ("_bucket", "_count", "_sum"), "counter": ("_total",), "gauge": ("",)}
OF_PROMETHEUS = {"instance", "job", "le"}
TRUTH = {"true", "false"}
WORDS: dict[str, set[str]] = {
    "action": {action.value for action in Action},
    "depth": {"failed", *(depth.value for depth in Depth)},
    "end": {LEFT, *(end.value for end in End)},
    "enforced": TRUTH,
    "job": {"guardtrace"},
    "outcome": {"used", "refused"},
    "reason": {reason.value for reason in Reason},
    "state": {state.value for state in Circuit},
    "status": {"5.."},
    "tenant": {"$tenant"},
}
"""What a label that is asked for may be."""
NANO = {"backend": "transformers", "base_url": None, "model": "builtin:nano", "depth": "cascade", "escalate_at": 1e-9}


@pytest.fixture(scope="module", name="scrapes")
def two_services(tmp_path_factory: pytest.TempPathFactory) -> list[Scrape]:
    """Whose auditors know different things of themselves, after every kind of outcome."""
    log = {"audit_log": {"path": str(tmp_path_factory.mktemp("log") / "audit.jsonl")}}
    script = CASES[0].script("well then", "fine")
    found = []
    with model_server(judging(by_word)) as other:
        urls = {"auditor": {"base_url": [other.url, f"http://127.0.0.1:{free_port()}/v1"]}}
        limits = {"tenants": {"all": {"policy": "test", "limits": {"requests_per_minute": 2}}}}
        with proxy(script, config={**LISTENING, **log, **urls, **limits}) as running:
            running.raw(ask(stream=True))
            running.raw(ask(n=0))
            assert running.raw(ask()).status_code == 429
            found.append(scrape(running.app.service))
    for timeout in (60_000, 1):
        with proxy(script, config={**LISTENING, "auditor": {**NANO, "timeout_ms": timeout}}) as running:
            running.raw(ask(stream=True))
            found.append(scrape(running.app.service))
    return found


@pytest.fixture(scope="module", name="real")
def families(scrapes: list[Scrape]) -> dict[str, tuple[str, set[str]]]:
    """By name, as the page has it: type and labels."""
    found: dict[str, tuple[str, set[str]]] = {}
    for family in (each for one in scrapes for each in one.families):
        name = family.name + ("_total" if family.type == "counter" else "")
        _, labels = found.get(name, ("", set()))
        found[name] = family.type, labels | {label for each in family.samples for label in each.labels}
    return found


def test_the_page_names_every_metric_with_its_type_and_labels(real: dict[str, tuple[str, set[str]]]) -> None:
    documented = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in ROW.findall(PAGE)}
    ours = {name: (kind, labels - {"le"}) for name, (kind, labels) in real.items() if name.startswith("guardtrace_")}
    assert documented == ours


def expressions(panels: list[dict[str, Any]] = DASHBOARD["panels"]) -> Iterator[str]:
    for panel in panels:
        yield from (target["expr"] for target in panel.get("targets", ()))
        yield from expressions(panel.get("panels", []))


def test_the_page_the_dashboard_and_the_rules_ask_for_what_there_is(real: dict[str, tuple[str, set[str]]]) -> None:
    samples = {
        name + part: labels | OF_PROMETHEUS for name, (kind, labels) in real.items() for part in parts_of(kind, name)
    } | {"up": OF_PROMETHEUS}
    variables = [each["query"]["query"] for each in DASHBOARD["templating"]["list"] if each["type"] == "query"]
    alerts = re.findall(r"^\| [^|]+ \| `(.+[ (].+)` \|$", PAGE, re.MULTILINE)
    rules = [rule["expr"] for group in RULES["groups"] for rule in group["rules"]]
    asked = [*expressions(), *variables, *alerts, *rules]
    assert len(asked) > 50
    assert len(alerts) == len(rules) == 14
    for expression in asked:
        names = NAME.findall(expression)
        assert names, expression
        assert set(names) <= samples.keys(), expression
        known = set().union(*(samples[name] for name in names))
        by = [label for group in re.findall(r"(?:by|on) \(([^)]*)\)", expression) for label in group.split(", ")]
        values = re.findall(r"(\w+)=~?\"([^\"]+)\"", expression)
        assert {*by, *(label for label, _ in values)} <= known, expression
        for label, value in values:
            assert set(value.split("|")) <= WORDS[label], expression


def parts_of(kind: str, name: str) -> tuple[str, ...]:
    return ("",) if name.endswith("_total") else PARTS[kind]


def test_every_metric_but_the_processs_is_on_the_dashboard(real: dict[str, tuple[str, set[str]]]) -> None:
    shown = " ".join(expressions())
    assert [name for name in real if name.startswith("guardtrace_") and name not in shown] == []


def test_the_dashboard_can_be_imported() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    assert {"title", "uid", "schemaVersion", "templating", "time"} <= DASHBOARD.keys()
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
        assert place["x"] + place["w"] <= 24
        assert not taken & cells, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            refs = [target["refId"] for target in panel["targets"]]
            assert len(set(refs)) == len(refs) > 0
            assert panel["datasource"]["uid"] == "${datasource}"
