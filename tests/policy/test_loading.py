"""Files become effective policies; whatever is wrong is said with file, line and key."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardtrace_proxy.policy.errors import PolicyError
from guardtrace_proxy.policy.loading import PRESETS, find_policy, load_policy
from guardtrace_proxy.policy.schema import Action, Mode, Policy


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(text, "utf-8")
    return path


def refusal(path: Path) -> str:
    with pytest.raises(PolicyError) as caught:
        load_policy(path)
    return str(caught.value)


@pytest.mark.parametrize("name", ["balanced", "strict", "monitor"])
def test_every_preset_loads_without_warnings(name):
    assert load_policy(PRESETS / f"{name}.yaml").warnings == ()


def test_balanced_says_what_the_schema_defaults_to():
    loaded = load_policy(PRESETS / "balanced.yaml")
    assert loaded.policy == Policy(version=1)


def test_values_come_from_the_nearest_file(tmp_path):
    write(tmp_path, "base", "version: 1\nextends: strict\nmessages:\n  cut: Stopped.\n")
    path = write(tmp_path, "acme", "version: 1\nextends: base\n\nboundary: {first: 8}\n")
    loaded = load_policy(path)
    assert loaded.policy.boundary.first == 8
    assert loaded.policy.boundary.max == 64
    assert loaded.policy.messages.cut == "Stopped."
    assert loaded.policy.messages.redaction == "[withheld by policy]"
    assert loaded.origins["boundary.first"] == f"{path}:4"
    assert loaded.origins["messages.cut"] == f"{tmp_path / 'base.yaml'}:4"
    assert loaded.origins["boundary.max"] == "preset strict:4"
    assert loaded.origins["hold_limit_ms"] == "preset balanced:15"
    assert loaded.origins["decision.confirmations"] == "default"


def test_a_preset_named_by_a_relative_path_is_still_a_preset(monkeypatch):
    monkeypatch.chdir(PRESETS)
    assert load_policy(Path("strict.yaml")).origins["boundary.first"] == "preset strict:4"


def test_a_file_may_refine_the_preset_it_is_named_after(tmp_path):
    path = write(tmp_path, "strict", "version: 1\nextends: strict\nhold_limit_ms: 10\n")
    policy = load_policy(path).policy
    assert (policy.hold_limit_ms, policy.boundary.first) == (10, 12)


def test_circles_are_named(tmp_path):
    write(tmp_path, "a", "version: 1\nextends: b\n")
    write(tmp_path, "b", "version: 1\nextends: c\n")
    write(tmp_path, "c", "version: 1\nextends: a\n")
    assert "extends: goes round in a circle: a -> b -> c -> a" in refusal(tmp_path / "a.yaml")


@pytest.mark.parametrize("name", ["nobody", "../escape", "/etc/passwd", "a/b", ".hidden", "x" * 65])
def test_what_is_extended_must_be_a_known_name(tmp_path, name):
    text = refusal(write(tmp_path, "acme", f"version: 1\nextends: {name}\n"))
    assert "acme.yaml:2: extends: " in text
    assert "known: acme" not in text


def test_no_name_leads_out_of_the_folder(tmp_path):
    write(tmp_path, "outside", "version: 1\n")
    folder = tmp_path / "policies"
    folder.mkdir()
    assert find_policy("../outside", folder) is None
    assert find_policy("balanced", folder) == PRESETS / "balanced.yaml"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("version: 1\nboundry: {first: 3}\n", ':2: boundry: unknown key; did you mean "boundary"?'),
        ("version: 1\nboundary:\n  frist: 3\n", ':3: boundary.frist: unknown key; did you mean "first"?'),
        ("version: 1\nactions: {harmful: kill}\n", ":2: actions.harmful: "),
        ("version: 1\nboundary: {first: '16'}\n", ":2: boundary.first: "),
        ("version: 1\nboundary: {first: 0}\n", ":2: boundary.first: "),
        ("version: 1\nboundary: {first: 200}\n", "boundary.first must not be above boundary.max"),
        ("version: 1\nthresholds: {harmful: 0}\n", ":2: thresholds.harmful: "),
        ("version: 1\nthresholds: {harmful: 1.5}\n", ":2: thresholds.harmful: "),
        ("version: 1\nthresholds: {harmful: .nan}\n", ":2: thresholds.harmful: "),
        ("version: 1\nthinking: {mode: yes}\n", ":2: thinking.mode: "),
        ("version: 2\n", ":1: version: "),
        ("thinking: {mode: hold}\n", "version: "),
        ("version: 1\nmessages: {cut: ''}\n", ":2: messages.cut: "),
        ("version: 1\nanswer: {mode: withhold}\n", ":2: answer.mode: withhold is for thinking"),
        ("version: 1\nthinking: {max_lag: 0}\n", ":2: thinking.max_lag: "),
        ("version: 1\nredaction: {localize: 1}\n", ":2: redaction.localize: "),
        ("version: 1\ndecision: {confirmations: 0}\n", ":2: decision.confirmations: "),
        ("version: 1\nreasoning_field: hide\n", ":2: reasoning_field: "),
        ("version: 1\nversion: 1\n", ":2: version: the key occurs twice"),
        ("- a\n- b\n", ":1: expected keys and values"),
        ("version: [1\n", "acme.yaml:2: "),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path, text, said):
    assert said in refusal(write(tmp_path, "acme", text))


NUMBERS = {
    "hold_limit_ms": "hold_limit_ms: N",
    "boundary.first": "boundary: {first: N, max: N}",
    "boundary.max": "boundary: {max: N}",
    "boundary.max_hold_ms": "boundary: {max_hold_ms: N}",
    "answer.max_lag": "answer: {mode: lag, max_lag: N}",
    "decision.confirmations": "decision: {confirmations: N}",
}


@pytest.mark.parametrize("key", NUMBERS)
def test_a_number_that_serving_couldnt_count_with_is_refused(tmp_path: Path, key: str) -> None:
    most = 2**30 - 1
    load_policy(write(tmp_path, "acme", f"version: 1\n{NUMBERS[key].replace('N', str(most))}\n"))
    for value in (most + 1, 10**400):
        text = refusal(write(tmp_path, "acme", f"version: 1\n{NUMBERS[key].replace('N', str(value))}\n"))
        assert f"{key}: input should be less than or equal to {most}" in text


def test_a_problem_is_placed_in_the_file_that_holds_the_key(tmp_path):
    write(tmp_path, "base", "version: 1\n\n\nhold_limit_ms: -1\n")
    text = refusal(write(tmp_path, "acme", "version: 1\nextends: base\n"))
    assert "base.yaml:4: hold_limit_ms: " in text


def test_all_problems_are_told_at_once(tmp_path):
    text = refusal(write(tmp_path, "acme", "version: 1\na: 1\nb: 2\nhold_limit_ms: soon\n"))
    assert len(text.splitlines()) == 3


def test_a_missing_file_and_bad_bytes_are_told(tmp_path):
    assert "can't be read" in refusal(tmp_path / "absent.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"version: \xff\n")
    assert "not UTF-8" in refusal(tmp_path / "bytes.yaml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("thinking: {mode: monitor}", "thinking is guarded less than the answer"),
        ("actions: {potentially_harmful: cut, harmful: flag}", "is milder than"),
        (
            "thinking: {mode: monitor}\nanswer: {mode: monitor}",
            "answer: mode is monitor, so redact and cut are only recorded",
        ),
        ("thinking: {mode: lag}", "redact can't take back"),
        (
            "actions: {potentially_harmful: redact, harmful: redact}\nthinking: {mode: monitor}",
            "thinking: mode is monitor",
        ),
    ],
)
def test_doubtful_policies_bring_warnings(tmp_path, text, said):
    loaded = load_policy(write(tmp_path, "acme", f"version: 1\n{text}\n"))
    assert any(said in warning for warning in loaded.warnings)


def test_a_phase_overrides_actions(tmp_path):
    path = write(tmp_path, "acme", "version: 1\nthinking: {actions: {harmful: redact}}\nanswer: {mode: monitor}\n")
    policy = load_policy(path).policy
    assert policy.phase("thinking").actions.harmful is Action.REDACT
    assert policy.phase("thinking").actions.potentially_harmful is Action.REDACT
    assert policy.phase("answering").actions.harmful is Action.CUT
    assert policy.phase("answering").mode is Mode.MONITOR


def test_the_digest_follows_what_counts_not_how_it_is_written(tmp_path):
    plain = load_policy(write(tmp_path, "a", "version: 1\n"))
    spelt_out = load_policy(write(tmp_path, "b", "version: 1\n# the default\nhold_limit_ms: 30000\n"))
    other = load_policy(write(tmp_path, "c", "version: 1\nhold_limit_ms: 30001\n"))
    assert plain.sha256 == spelt_out.sha256 != other.sha256


values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.sampled_from(["hold", "cut", "", "strict"]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["first", "mode", "x"]), inner, max_size=2)
    ),
    max_leaves=4,
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from([*Policy.model_fields, "other"]), values, max_size=4))
def test_any_yaml_gives_a_policy_or_a_policy_error(tmp_path_factory, content):
    import yaml

    path = write(tmp_path_factory.mktemp("any"), "any", yaml.safe_dump({"version": 1, **content}))
    try:
        load_policy(path)
    except PolicyError as error:
        assert error.problems
