"""guardtrace.yaml becomes settings; whatever is wrong is said with file, line, key and the nearest valid key."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guardtrace_proxy.policy.errors import ConfigError
from guardtrace_proxy.server.config import Config, load_config
from guardtrace_proxy.server.settings import ConfigFile
from tests.tls import private_authority

HASH = "sha256:" + "ab" * 32
UPSTREAMS = "upstreams: {default: {base_url: 'http://127.0.0.1:9000/v1'}}\n"
AUDITOR = "auditor: {base_url: 'http://127.0.0.1:9001/v1'}\n"
TENANTS = "tenants: {acme: {policy: balanced}}\n"
LEAST = UPSTREAMS + AUDITOR + TENANTS


def load(folder: Path, text: str, environ: dict[str, str] | None = None) -> Config:
    path = folder / "guardtrace.yaml"
    path.write_text(text, "utf-8")
    return load_config(path, environ or {})


def refusal(folder: Path, text: str, environ: dict[str, str] | None = None) -> list[str]:
    """The problems without the folder's name."""
    with pytest.raises(ConfigError) as caught:
        load(folder, text, environ)
    return [str(problem).removeprefix(f"{folder}/guardtrace.yaml:") for problem in caught.value.problems]


def test_the_least_file_gets_the_documented_defaults(tmp_path):
    config = load(tmp_path, LEAST)
    assert (config.server.host, config.server.port) == ("127.0.0.1", 8080)
    assert (config.server.max_body_bytes, config.server.max_stream_bytes) == (33554432, 8388608)
    assert config.server.max_total_bytes == 1073741824
    assert (config.images.max_count, config.images.max_bytes, config.images.max_pixels) == (8, 20971520, 40000000)
    assert (config.images.allow_urls, config.images.timeout_ms) == ([], 3000)
    assert (config.auditor.backend, config.auditor.model) == ("openai", "DloadingX/GuardTrace-VL-3B")
    assert (config.auditor.depth, config.auditor.timeout_ms, config.auditor.annotate_max_tokens) == (
        "cascade",
        5000,
        512,
    )
    assert (config.auditor.escalate_at, config.auditor.annotate_timeout_ms) == (None, None)
    assert config.upstreams["default"].thinking.style == "auto"
    assert config.anonymous_tenant is None
    assert list(config.policies) == ["balanced"]


def test_policies_come_from_policies_dir_beside_the_file_then_from_the_presets(tmp_path):
    folder = tmp_path / "rules"
    folder.mkdir()
    (folder / "acme.yaml").write_text("version: 1\nextends: strict\nhold_limit_ms: 5\n")
    text = UPSTREAMS + AUDITOR + "policies_dir: rules\ntenants: {a: {policy: acme}, b: {policy: monitor}}\n"
    config = load(tmp_path, text)
    assert config.policies["acme"].policy.hold_limit_ms == 5
    assert set(config.policies) == {"acme", "monitor"}


def test_an_absent_policy_is_told_with_its_place(tmp_path):
    text = UPSTREAMS + AUDITOR + "tenants:\n  acme:\n    policy: nobody\n"
    assert refusal(tmp_path, text) == [
        f"5: tenants.acme.policy: no nobody.yaml in {tmp_path / 'policies'}, no such preset"
    ]


def test_a_bad_policy_is_told_with_its_own_file_and_line(tmp_path):
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "acme.yaml").write_text("version: 1\nanswr: {mode: hold}\n")
    text = UPSTREAMS + AUDITOR + "tenants: {a: {policy: acme}, b: {policy: acme}}\n"
    assert refusal(tmp_path, text) == [
        f'{tmp_path / "policies" / "acme.yaml"}:2: answr: unknown key; did you mean "answer"?'
    ]


REFUSED = {
    # Unknown keys, at every depth, with the nearest valid one.
    "top": ("tennants: {}", '4: tennants: unknown key; did you mean "tenants"?'),
    "nothing near": ("zzz: 1", f"4: zzz: unknown key; valid ones are {', '.join(sorted(ConfigFile.model_fields))}"),
    "section": ("server:\n  prot: 1", '5: server.prot: unknown key; did you mean "port"?'),
    "images": ("images: {max_byte: 1}", '4: images.max_byte: unknown key; did you mean "max_bytes"?'),
    # Wrong types and impossible values.
    "port as text": ("server: {port: '8080'}", "4: server.port: input should be a valid integer"),
    "port as yes": ("server: {port: yes}", "4: server.port: input should be a valid integer"),
    "port too high": ("server: {port: 65536}", "4: server.port: input should be less than or equal to 65535"),
    "port below": ("server: {port: -1}", "4: server.port: input should be greater than or equal to 0"),
    "host": ("server: {host: 1}", "4: server.host: input should be a valid string"),
    "bytes": ("server: {max_body_bytes: 1023}", "4: server.max_body_bytes: input should be greater than"),
    "stream bytes": ("server: {max_stream_bytes: 0}", "4: server.max_stream_bytes: input should be greater than"),
    "total bytes": ("server: {max_total_bytes: 1.5}", "4: server.max_total_bytes: input should be a valid integer"),
    "NaN": ("server: {max_body_bytes: .nan}", "4: server.max_body_bytes: .nan is no number that can be used"),
    "count": ("images: {max_count: -1}", "4: images.max_count: input should be greater than or equal to 0"),
    "pixels": ("images: {max_pixels: 1}", "4: images.max_pixels: input should be greater than or equal to 784"),
    "audit log nowhere": ("audit_log: {path: gone/audit.jsonl}", "4: audit_log.path: there is no folder"),
    "audit log is a folder": ("audit_log: {path: /tmp}", "4: audit_log.path: /tmp is a folder: name a file in it"),
    "audit log without a path": ("audit_log: {keep: 3}", "4: audit_log.keep: has no effect without audit_log.path"),
    "metrics where tenants ask": ("metrics: {port: 8080}", "4: metrics.port: is server.port, where tenants ask"),
    "no host": ("server: {host: ''}", "4: server.host: string should have at least 1 character"),
    "metrics everywhere": ("metrics: {host: '', port: 9}", "4: metrics.host: string should have at least 1 character"),
    "metrics nowhere": ("metrics: {host: 0.0.0.0}", "4: metrics.host: has no effect without metrics.port"),
    "a share of no traces": ("tracing: {sample: 0.5}", "4: tracing.sample: has no effect without tracing.endpoint"),
    "traces to no URL": ("tracing: {endpoint: collector}", "4: tracing.endpoint: expected an http:// or https:// URL"),
    "log format": ("logging: {format: xml}", "4: logging.format: input should be 'json' or 'console'"),
    "log level": ("logging: {level: trace}", "4: logging.level: input should be 'debug', 'info', 'warning' or 'error'"),
    "section as list": ("images: [1]", "4: images: expected keys with values"),
    "section as text": ("server: 8080", "4: server: expected keys with values, as in {key: value}"),
    # What refers to nothing.
    "anonymous": ("anonymous_tenant: ghost", "4: anonymous_tenant: there is no tenant 'ghost'"),
    # Files that aren't settings.
    "twice": ("tenants: {}", "4: tenants: the key occurs twice"),
    "merge": ("server:\n  <<: {port: 1}", "5: server: merge keys (<<) aren't supported; use extends"),
    "object": ("server: !!python/object:os.system {}", "4: server: the tag tag:yaml.org,2002:python/object"),
    # What isn't built yet (ruling 17).
    "passthrough": ("server: {passthrough: [/v1/x]}", "4: server.passthrough: passthrough is not yet supported"),
    "urls": (
        "images:\n  allow_urls:\n    - https://a.example/\n    - ftp://b.example/",
        "7: images.allow_urls.1: expected a URL such as https://images.example.com/ or",
    ),
    "private url": ("images: {allow_urls: ['http://10.0.0.1/']}", "4: images.allow_urls.0: the address isn't public"),
    "one url": ("images: {allow_urls: 'https://a.example/'}", "4: images.allow_urls: input should be a valid list"),
    "image timeout": ("images: {timeout_ms: 0}", "4: images.timeout_ms: input should be greater than or equal to 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_said_with_its_place(tmp_path, name):
    text, said = REFUSED[name]
    problems = refusal(tmp_path, LEAST + text + "\n")
    assert len(problems) == 1
    assert problems[0].startswith(said)


def test_every_whole_number_has_a_highest_value() -> None:
    """Beyond what a float or the kernel takes, a number would pass the checks and break serving."""
    unbounded = [str(each) for each in whole_numbers(ConfigFile.model_json_schema()) if "maximum" not in each]
    assert unbounded == []


def whole_numbers(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict) and schema.get("type") == "integer":
        yield schema
    inner = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
    for each in inner:
        yield from whole_numbers(each)


@pytest.mark.parametrize(
    ("key", "most"),
    [
        ("server.client_timeout_ms", 2**30 - 1),
        ("server.keepalive_ms", 2**30 - 1),
        ("server.max_total_bytes", 2**50),
        ("auditor.timeout_ms", 2**30 - 1),
        ("images.max_pixels", 2**30 - 1),
    ],
)
def test_the_highest_value_is_taken_and_the_next_one_refused(tmp_path: Path, key: str, most: int) -> None:
    section, name = key.split(".")
    loaded: dict[str, Any] = yaml.safe_load(LEAST)
    for value in (most, most + 1, 10**400):
        text = yaml.safe_dump({**loaded, section: {**loaded.get(section, {}), name: value}})
        if value == most:
            load(tmp_path, text)
        else:
            (problem,) = refusal(tmp_path, text)
            assert f" {key}: input should be less than or equal to {most}" in problem


URL = "auditor.base_url: expected an http:// or https:// URL with a host and a valid port"
AUDITORS = {
    "backend": ("{backend: ollama, base_url: 'http://a/v1'}", "auditor.backend: input should be"),
    "no URL": ("{}", "auditor.base_url: required by backend openai"),
    "URL": ("{base_url: 'localhost:9001'}", URL),
    "no host": ("{base_url: 'http:///v1'}", URL),
    "port": ("{base_url: 'http://a:x/v1'}", URL),
    "high port": ("{base_url: 'http://a:65536/v1'}", URL),
    "space": ("{base_url: 'http://a b/v1'}", URL),
    "line": ('{base_url: "http://a\\n/v1"}', URL),
    "name": ("{base_url: 'http://a..\u00e4/v1'}", URL),
    "password": ("{base_url: 'http://:p@a/v1'}", "auditor.base_url: expected a URL without query"),
    "query": ("{base_url: 'http://a/v1?k=1'}", "auditor.base_url: expected a URL without query"),
    "user": ("{base_url: 'http://u:p@a/v1'}", "auditor.base_url: expected a URL without query"),
    "route": ("{base_url: 'http://a/v1/chat/completions/'}", "auditor.base_url: expected the URL up to /v1"),
    "number": ("{base_url: 9001}", "auditor.base_url: expected a URL, or a list of URLs"),
    "no URLs": ("{base_url: []}", "auditor.base_url: expected at least one URL"),
    "number among URLs": ("{base_url: ['http://a/v1', 1]}", "auditor.base_url.1: input should be a valid string"),
    "useless URL": (
        "{backend: transformers, base_url: 'http://a/v1'}",
        "auditor.base_url: has no effect with backend transformers",
    ),
    "model": ("{base_url: 'http://a/v1', model: ''}", "auditor.model: string should have at least 1 character"),
    "timeout": ("{base_url: 'http://a/v1', timeout_ms: 0}", "auditor.timeout_ms: input should be greater than"),
    "tokens": ("{base_url: 'http://a/v1', annotate_max_tokens: 7}", "auditor.annotate_max_tokens: input should be"),
    "KV cache": ("{base_url: 'http://a/v1', kv_cache_bytes: 2048}", "auditor.kv_cache_bytes: has no effect"),
    "context": ("{base_url: 'http://a/v1', max_context: 511}", "auditor.max_context: input should be"),
    "unknown": (
        "{base_url: 'http://a/v1', time_out: 5}",
        'auditor.time_out: unknown key; did you mean "timeout_ms"?',
    ),
    "vllm": ("{backend: vllm, kv_cache_bytes: 4096}", "auditor.kv_cache_bytes: has no effect with backend vllm"),
    "depth": ("{base_url: 'http://a/v1', depth: both}", "auditor.depth: input should be 'label', 'annotate' or"),
    "escalate": (
        "{base_url: 'http://a/v1', depth: annotate, escalate_at: 0.1}",
        "auditor.escalate_at: has no effect with depth annotate",
    ),
    "escalate label": (
        "{base_url: 'http://a/v1', depth: label, escalate_at: 0.1}",
        "auditor.escalate_at: has no effect with depth label",
    ),
    "never escalate": ("{base_url: 'http://a/v1', escalate_at: 1.1}", "auditor.escalate_at: input should be less than"),
    "always escalate": ("{base_url: 'http://a/v1', escalate_at: 0}", "auditor.escalate_at: input should be greater"),
    "late": (
        "{base_url: 'http://a/v1', escalate_at: 0.51}",
        "auditor.escalate_at: is above 0.5, the lower threshold of policy balanced, which would then act on label reads",
    ),
    "own timeout": (
        "{base_url: 'http://a/v1', depth: label, annotate_timeout_ms: 9000}",
        "auditor.annotate_timeout_ms: has no effect with depth label",
    ),
    "short annotations": (
        "{base_url: 'http://a/v1', annotate_timeout_ms: 4999}",
        "auditor.annotate_timeout_ms: is below timeout_ms (5000), but is there to give annotations longer: raise or",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", AUDITORS)
def test_what_is_wrong_about_the_auditor(tmp_path, name):
    text, said = AUDITORS[name]
    problems = refusal(tmp_path, UPSTREAMS + TENANTS + f"auditor: {text}\n")
    assert len(problems) == 1
    assert problems[0].startswith(f"3: {said}")


def test_the_auditor_may_be_one_server_or_several(tmp_path):
    def urls(text):
        return load(tmp_path, f"{UPSTREAMS}{TENANTS}auditor: {{base_url: {text}}}\n").auditor.base_url

    assert urls("'http://a/v1'") == urls("['http://a/v1']") == ["http://a/v1"]
    assert urls("['http://a/v1', 'http://a:81/v1', 'http://a/v2']") == ["http://a/v1", "http://a:81/v1", "http://a/v2"]


def test_each_of_several_auditors_is_checked_at_its_line(tmp_path):
    lines = ["http://a/v1", "localhost:9001", "http://a/v1/", "http://u:hunter2@a/v1"]
    text = UPSTREAMS + TENANTS + "auditor:\n  base_url:\n" + "".join(f"    - {line!r}\n" for line in lines)
    assert refusal(tmp_path, text) == [
        f"6: {URL.replace('base_url', 'base_url.1')}",
        "8: auditor.base_url.3: expected a URL without query, fragment or user name",
    ]
    text = text.replace("localhost:9001", "http://A:80/v1").replace("u:hunter2@a", "b")
    assert refusal(tmp_path, text) == [
        f"{line}: auditor.base_url.{number}: the same server as auditor.base_url.0: name it once"
        for line, number in ((6, 1), (7, 2))
    ]


def test_a_key_for_an_auditor_in_this_process_has_no_effect(tmp_path):
    text = UPSTREAMS + TENANTS + "auditor: {backend: transformers, api_key_env: GUARD}\n"
    assert refusal(tmp_path, text, {"GUARD": "k"}) == [
        "3: auditor.api_key_env: has no effect with backend transformers"
    ]


@pytest.mark.parametrize("backend", ["{backend: transformers, ", "{base_url: 'http://a/v1', "])
@pytest.mark.parametrize("depth", ["depth: label}", "depth: annotate, annotate_timeout_ms: 5000}", "escalate_at: 0.5}"])
def test_every_depth_is_for_every_backend(tmp_path, backend, depth):
    config = load(tmp_path, UPSTREAMS + TENANTS + f"auditor: {backend}{depth}\n")
    assert config.auditor.depth in depth or config.auditor.depth == "cascade"


def test_every_policy_that_would_be_escalated_too_late_is_named_at_its_line(tmp_path):
    folder = tmp_path / "policies"
    folder.mkdir()
    for name, thresholds in (("early", "{harmful: 0.2}"), ("early-too", "{potentially_harmful: 0.3}"), ("late", "{}")):
        (folder / f"{name}.yaml").write_text(f"version: 1\nthresholds: {thresholds}\n")
    tenants = "tenants: {a: {policy: early}, b: {policy: early-too}, c: {policy: late}}\n"
    text = UPSTREAMS + tenants + "auditor:\n  base_url: http://a/v1\n  escalate_at: 0.4\n"
    first, second = refusal(tmp_path, text)
    assert first.startswith("5: auditor.escalate_at: is above 0.2, the lower threshold of policy early, ")
    assert second.startswith("5: auditor.escalate_at: is above 0.3, the lower threshold of policy early-too, ")
    assert load(tmp_path, text.replace("0.4", "0.2")).auditor.escalate_at == 0.2


@pytest.mark.parametrize(
    ("auditor", "is_idle"),
    [
        ("{base_url: 'http://a/v1', depth: annotate}", True),
        ("{base_url: 'http://a/v1', depth: annotate, fallback: {base_url: 'http://b/v1'}}", True),
        ("{base_url: 'http://a/v1', depth: annotate, fallback: {backend: transformers}}", False),
        ("{backend: transformers, depth: annotate}", False),
        ("{base_url: 'http://a/v1', depth: label}", False),
        ("{base_url: 'http://a/v1'}", False),
    ],
)
def test_thresholds_beside_an_auditor_without_probabilities_are_warned_of(tmp_path, auditor, is_idle):
    """Those of a preset aren't: nobody wrote them."""
    folder = tmp_path / "policies"
    folder.mkdir()
    (folder / "mine.yaml").write_text("version: 1\nextends: strict\nthresholds: {harmful: 0.2}\n")
    tenants = "tenants: {a: {policy: mine}, b: {policy: strict}}\n"
    config = load(tmp_path, UPSTREAMS + tenants + f"auditor: {auditor}\n")
    said = [warning for warning in config.policies["mine"].warnings if "thresholds.harmful has no effect" in warning]
    assert bool(said) == is_idle
    assert all(f"({folder / 'mine.yaml'}:3)" in warning for warning in said)
    assert not any("thresholds" in warning for warning in config.policies["strict"].warnings)


OTHERS = {
    "no upstream": ("upstreams: {}", "1: upstreams: expected at least one upstream"),
    "upstream without URL": ("upstreams: {default: {}}", "1: upstreams.default.base_url: required, but missing"),
    "ftp": ("upstreams: {default: {base_url: 'ftp://a/v1'}}", "1: upstreams.default.base_url: expected an http://"),
    "upstream key": (
        "upstreams:\n  default:\n    base_ulr: http://a/v1\n    base_url: http://a/v1",
        '3: upstreams.default.base_ulr: unknown key; did you mean "base_url"?',
    ),
    "style": (
        "upstreams: {default: {base_url: 'http://a/v1', thinking: {style: tags}}}",
        "1: upstreams.default.thinking.style: input should be 'auto', 'field', 'inline' or 'custom'",
    ),
    "custom": (
        "upstreams: {default: {base_url: 'http://a/v1', thinking: {style: custom, open: '<a>'}}}",
        "1: upstreams.default.thinking: style custom needs close",
    ),
    "custom without open": (
        "upstreams: {default: {base_url: 'http://a/v1', thinking: {style: custom, close: '</a>'}}}",
        "1: upstreams.default.thinking: style custom needs open, or starts_open: true",
    ),
    "tags": (
        "upstreams: {default: {base_url: 'http://a/v1', thinking: {close: '</a>'}}}",
        "1: upstreams.default.thinking: open and close are for style custom",
    ),
    "empty tag": (
        "upstreams: {default: {base_url: 'http://a/v1', thinking: {style: custom, close: ''}}}",
        "1: upstreams.default.thinking.close: string should have at least 1 character",
    ),
    "starts open": (
        "upstreams: {default: {base_url: 'http://a/v1', thinking: {style: field, starts_open: true}}}",
        "1: upstreams.default.thinking: starts_open has no effect with style field",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_wrong_about_upstreams(tmp_path, name):
    text, said = OTHERS[name]
    problems = refusal(tmp_path, f"{text}\n{AUDITOR}tenants: {{}}\n")
    assert len(problems) == 1
    assert problems[0].startswith(said)


@pytest.mark.parametrize(
    ("tenants", "said"),
    [
        ("acme: {}", "4: tenants.acme.policy: required, but missing"),
        ("acme: {policy: balanced, upstrem: default}", 'unknown key; did you mean "upstream"?'),
        ("acme: {policy: balanced, upstream: other}", "there is no upstream 'other'; known: default"),
        ("acme: {policy: balanced, keys: [gt-secret]}", 'keys: expected "sha256:" and 64 hex digits'),
        ("acme: {policy: balanced, keys: ['sha256:abc']}", 'keys: expected "sha256:" and 64 hex digits'),
        (f"acme: {{policy: balanced, keys: ['sha256:{'g' * 64}']}}", 'keys: expected "sha256:" and 64 hex digits'),
        (f"acme: {{policy: balanced, keys: ['{HASH}\u0660']}}", 'keys: expected "sha256:" and 64 hex digits'),
        (f"acme: {{policy: balanced, keys: '{HASH}'}}", "4: tenants.acme.keys: input should be a valid list"),
        ("acme: {policy: ../balanced}", "4: tenants.acme.policy: no ../balanced.yaml"),
        ("acme: [balanced]", "4: tenants.acme: expected keys with values"),
    ],
)
def test_what_is_wrong_about_tenants(tmp_path, tenants, said):
    problems = refusal(tmp_path, f"{UPSTREAMS}{AUDITOR}tenants:\n  {tenants}\n")
    assert len(problems) == 1
    assert said in problems[0]


def test_one_key_belongs_to_one_tenant(tmp_path):
    text = f"{UPSTREAMS}{AUDITOR}tenants:\n  a: {{policy: strict, keys: ['{HASH}']}}\n"
    other = f"  b: {{policy: strict, keys: ['{HASH.upper().replace('SHA', 'sha')}']}}\n"
    assert refusal(tmp_path, text + other) == ["5: tenants.b.keys: tenant a has the same key"]


@pytest.mark.parametrize("section", ["upstreams", "auditor", "tenants"])
def test_three_sections_are_required(tmp_path, section):
    text = "".join(line + "\n" for line in LEAST.splitlines() if not line.startswith(section))
    assert refusal(tmp_path, text) == [f" {section}: required, but missing"]


def test_all_problems_are_told_at_once(tmp_path):
    auditor = "auditor: {base_url: 'http://b/v1', escalate_at: 0.9}\n"
    text = UPSTREAMS + auditor + TENANTS + "anonymous_tenant: ghost\nserver: {passthrough: [/x]}\n"
    assert len(refusal(tmp_path, text)) == 3


def test_keys_come_from_the_environment(tmp_path):
    text = (
        "upstreams: {default: {base_url: 'http://a/v1', api_key_env: UP}}\n"
        "auditor: {base_url: 'http://b/v1', api_key_env: GUARD}\n" + TENANTS
    )
    assert load(tmp_path, text, {"UP": "k", "GUARD": "k"}).upstreams["default"].api_key_env == "UP"
    said = "the environment variable {} isn't set; set it, or leave the key out"
    assert refusal(tmp_path, text, {"UP": ""}) == [
        f"1: upstreams.default.api_key_env: {said.format('UP')}",
        f"2: auditor.api_key_env: {said.format('GUARD')}",
    ]


@pytest.mark.parametrize("key", ["sk-abc\n", "sk-\u200babc", "sk\x00"])
def test_a_key_that_no_header_can_carry_is_a_problem_and_isnt_repeated(tmp_path, key):
    text = "upstreams: {default: {base_url: 'http://a/v1', api_key_env: UP}}\n" + AUDITOR + TENANTS
    said = "the environment variable UP holds a line break, or another character that no header can carry"
    assert refusal(tmp_path, text, {"UP": key}) == [f"1: upstreams.default.api_key_env: {said}"]


def test_a_key_in_place_of_its_variables_name_isnt_repeated(tmp_path):
    text = "upstreams: {default: {base_url: 'http://a/v1', api_key_env: sk-proj-abc}}\n" + AUDITOR + TENANTS
    [said] = refusal(tmp_path, text)
    assert said.startswith("1: upstreams.default.api_key_env: expected the name of an environment variable")
    assert "sk-proj" not in said


OVER_TLS = (
    "upstreams:\n  default: {base_url: 'https://a/v1', ca_file: FILE}\n"
    "auditor:\n  base_url: https://b/v1\n  ca_file: FILE\n"
    "  fallback: {base_url: 'https://c/v1', ca_file: FILE}\n" + TENANTS
)


def test_files_of_authorities_lie_beside_the_settings(tmp_path):
    (tmp_path / "tls").mkdir()
    private_authority(tmp_path / "tls" / "ca.pem")
    config = load(tmp_path, OVER_TLS.replace("FILE", "tls/ca.pem"))
    absolute = str(tmp_path / "tls" / "ca.pem")
    assert config.over_http["default"].ca_file == absolute
    assert [guard.ca_file for guard in config.auditor.guards.values()] == [absolute, absolute]
    assert load(tmp_path, OVER_TLS.replace("FILE", absolute)) == config
    assert load(tmp_path, LEAST).over_http["default"].ca_file is None


CA_FILES = {
    "absent": (None, "can't be read: No such file or directory"),
    "empty": (b"", "holds no certificate, or one that can't be read: expected PEM"),
    "words": (b"the certificate", "holds no certificate, or one that can't be read: expected PEM"),
    "bytes": (b"\x30\x82\x01\x00", "holds no certificate, or one that can't be read: expected PEM"),
    "broken": (
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        "holds no certificate, or one that can't be read: expected PEM",
    ),
}


@pytest.mark.parametrize("name", CA_FILES)
def test_a_file_of_authorities_that_cant_be_used_is_told_wherever_it_is_named(tmp_path, name):
    content, said = CA_FILES[name]
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    problems = refusal(tmp_path, OVER_TLS.replace("FILE", "ca.pem"))
    keys = {2: "upstreams.default", 5: "auditor", 6: "auditor.fallback"}
    assert [problem.partition(" holds")[0].partition(" can't")[0] for problem in problems] == [
        f"{line}: {key}.ca_file: {path}" for line, key in keys.items()
    ]
    assert all(said in problem for problem in problems)


def test_a_folder_or_a_list_of_revoked_certificates_holds_no_authority(tmp_path):
    (tmp_path / "folder").mkdir()
    assert "can't be read: Is a directory" in refusal(tmp_path, OVER_TLS.replace("FILE", "folder"))[0]
    key = ec.generate_private_key(ec.SECP256R1())
    revoked = x509.CertificateRevocationListBuilder(x509.Name([]), datetime(2020, 1, 1), datetime(2020, 1, 2))
    pem = revoked.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    (tmp_path / "crl.pem").write_bytes(pem)
    assert "crl.pem holds no certificate: expected PEM" in refusal(tmp_path, OVER_TLS.replace("FILE", "crl.pem"))[0]


def test_a_file_of_authorities_without_https_has_no_effect(tmp_path):
    private_authority(tmp_path / "ca.pem")
    text = OVER_TLS.replace("FILE", "ca.pem")
    without = "has no effect with http://: write https:// in base_url, or leave it out"
    assert refusal(tmp_path, text.replace("https", "http")) == [
        f"{line}: {key}.ca_file: {without}"
        for line, key in ((2, "upstreams.default"), (5, "auditor"), (6, "auditor.fallback"))
    ]
    assert load(tmp_path, text.replace("https://b/v1", "['HTTPS://b/v1', 'http://b/v2']"))
    in_process = text.replace("base_url: https://b/v1", "backend: transformers")
    assert refusal(tmp_path, in_process) == ["5: auditor.ca_file: has no effect with backend transformers"]
    assert refusal(tmp_path, text.replace("  base_url: https://b/v1\n", "")) == [
        "3: auditor.base_url: required by backend openai: the URL of a server, ending in /v1"
    ]


def test_a_key_in_the_file_is_no_setting(tmp_path):
    text = "upstreams: {default: {base_url: 'http://a/v1', api_key: hunter2}}\n" + AUDITOR + TENANTS
    problems = refusal(tmp_path, text)
    assert problems == ['1: upstreams.default.api_key: unknown key; did you mean "api_key_env"?']


def test_refusals_never_repeat_a_secret(tmp_path):
    text = (
        UPSTREAMS + "auditor: {base_url: 'http://me:hunter2@a/v1'}\ntenants: {a: {policy: strict, keys: [hunter2]}}\n"
    )
    assert "hunter2" not in "\n".join(refusal(tmp_path, text))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "upstreams: required, but missing"),
        (b"\xff\xfe", "not UTF-8 YAML"),
        (b"- a\n", "1: expected keys and values"),
        (b"server: [1\n", "2: "),
        (b"a: &x [1]\n" + b"b: " + b"[" * 30 + b"]" * 30, "more than 20 levels"),
        (b"# " + b"x" * 262_144, "larger than 262,144 bytes"),
        (b"a: &a [1,1,1,1,1,1,1,1,1,1]\n" + b"".join(
            b"%c: &%c [%s]\n" % (98 + n, 98 + n, b",".join([b"*%c" % (97 + n)] * 10)) for n in range(5)
        ), "more than 20,000 values"),
    ],
    ids=["empty", "bytes", "list", "open", "deep", "large", "aliases"],
)  # fmt: skip
def test_files_that_are_no_settings(tmp_path, content, said):
    path = tmp_path / "guardtrace.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(path, {})
    assert said in str(caught.value)


def test_an_absent_file(tmp_path):
    with pytest.raises(ConfigError, match="can't be read: No such file"):
        load_config(tmp_path / "absent.yaml", {})


leaves = st.none() | st.booleans() | st.integers(-3, 70_000) | st.floats() | st.text(max_size=6)
names = st.sampled_from(
    [*ConfigFile.model_fields, "default", "acme", "base_url", "policy", "keys", "thinking", "style", "port", "x.y", ""]
)
words = st.sampled_from(["default", "acme", "balanced", "http://a/v1", "http://[::1", "custom", "../..", HASH])
values: st.SearchStrategy[Any] = st.recursive(
    leaves | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names | st.text(max_size=4), inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(names | st.text(max_size=4), values, max_size=6), st.booleans())
def test_any_mapping_gives_a_config_or_a_config_error(tmp_path, content, merged):
    if merged:
        content = {**yaml.safe_load(LEAST), **content}
    path = tmp_path / "guardtrace.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True), "utf-8")
    try:
        config = load_config(path, {})
    except ConfigError as error:
        assert error.problems
        assert all(problem.message for problem in error.problems)
    else:
        assert {tenant.policy for tenant in config.tenants.values()} == set(config.policies)


@pytest.mark.parametrize(("field", "why"), [("store", "store can't be allowed"), ("seed", "seed is known already")])
def test_only_unknown_fields_of_requests_can_be_allowed(tmp_path, field, why):
    text = (
        f"upstreams: {{default: {{base_url: 'http://127.0.0.1:9000/v1', allow_fields: [FIELD]}}}}\n{AUDITOR}{TENANTS}"
    )
    assert load(tmp_path, text.replace("FIELD", "session_id")).upstreams["default"].allow_fields == ["session_id"]
    (problem,) = refusal(tmp_path, text.replace("FIELD", field))
    assert "upstreams.default.allow_fields" in problem
    assert why in problem
