"""Settings that do nothing beside the others are told, each where it was written; what a preset says never is."""

from __future__ import annotations

from pathlib import Path

import pytest

from guardtrace_proxy.policy.loading import PRESETS, load_policy

BOTH_MONITOR = "thinking: {mode: monitor}\nanswer: {mode: monitor}\n"
IDLE = {
    "thinking.max_lag": ("thinking: {max_lag: 9}", "in mode hold"),
    "answer.max_lag": ("answer: {mode: monitor, max_lag: 9}", "in mode monitor"),
    "thinking.actions.harmful": ("thinking: {mode: withhold, actions: {harmful: cut}}", "in mode withhold: verdicts"),
    "reasoning_field": ("thinking: {mode: withhold}\nreasoning_field: reasoning", "where thinking is withheld"),
    "boundary.growth": ("boundary: {first: 8, max: 8, growth: 2}", "where boundary.first and boundary.max are the same"),
    "boundary.max": ("boundary: {first: 8, max: 64, growth: 1}", "where boundary.growth is 1"),
    "actions.harmful": (
        "actions: {harmful: cut}\nthinking: {actions: {harmful: redact}}\nanswer: {actions: {harmful: flag}}",
        "where the phases have their own",
    ),
    "actions.potentially_harmful": (
        "actions: {potentially_harmful: cut}\nthinking: {mode: withhold}\nanswer: {actions: {potentially_harmful: flag}}",
        "where the phases have their own",
    ),
    "messages.redaction": (
        "messages: {redaction: '[gone]'}\nactions: {potentially_harmful: cut}",
        "where nothing is redacted",
    ),
    "redaction.localize": (
        "redaction: {localize: true}\nactions: {potentially_harmful: cut}",
        "where nothing is redacted",
    ),
    "decision.confirmations": (
        "decision: {confirmations: 2}\nactions: {potentially_harmful: pass, harmful: pass}",
        "where no verdict is acted on",
    ),
    "thresholds.harmful": (
        "thresholds: {harmful: 0.9}\nactions: {potentially_harmful: pass, harmful: pass}",
        "where both levels pass",
    ),
    "messages.cut": (
        "messages: {cut: Stopped.}\nactions: {potentially_harmful: flag, harmful: flag}",
        "where no verdict cuts",
    ),
    "messages.auditor_failure": (
        "messages: {auditor_failure: Failed.}\non_auditor_failure: release",
        "where no failure of the auditor cuts",
    ),
    "cut_shape": (
        "cut_shape: refusal\nactions: {potentially_harmful: flag, harmful: flag}\non_auditor_failure: release",
        "where nothing is cut",
    ),
    "on_auditor_failure": (f"{BOTH_MONITOR}on_auditor_failure: release", "where no verdict is acted on"),
    "hold_limit_ms": ("hold_limit_ms: 1000", "without on_auditor_failure: hold"),
    "expose.object": (
        "expose: {object: true}\ncut_shape: error\nactions: {potentially_harmful: redact, harmful: cut}",
        "where nothing is flagged",
    ),
}  # fmt: skip


def warnings_of(folder: Path, text: str, **bases: str) -> list[str]:
    for name, content in {**bases, "acme": text}.items():
        (folder / f"{name}.yaml").write_text(f"version: 1\n{content}\n", "utf-8")
    return [warning.replace(f"{folder}/", "") for warning in load_policy(folder / "acme.yaml").warnings]


@pytest.mark.parametrize("key", IDLE)
def test_a_setting_without_effect_is_told_with_its_place(tmp_path: Path, key: str) -> None:
    text, why = IDLE[key]
    said = [warning for warning in warnings_of(tmp_path, text) if warning.startswith(f"{key} has no effect ")]
    assert len(said) == 1
    assert said[0].startswith(f"{key} has no effect {why}")
    assert said[0].endswith(")")
    assert "(acme.yaml:" in said[0]


@pytest.mark.parametrize("key", IDLE)
def test_it_is_told_of_no_one_who_has_not_written_it(tmp_path: Path, key: str) -> None:
    without = "\n".join(line for line in IDLE[key][0].splitlines() if not line.startswith(key.partition(".")[0]))
    assert not any(warning.startswith(f"{key} ") for warning in warnings_of(tmp_path, f"extends: balanced\n{without}"))


def test_what_a_base_of_ones_own_says_is_told_where_it_stands(tmp_path: Path) -> None:
    base = "extends: balanced\non_auditor_failure: hold\nhold_limit_ms: 1000"
    assert warnings_of(tmp_path, base) == []
    said = warnings_of(tmp_path, "extends: base\non_auditor_failure: cut", base=base)
    assert said == ["hold_limit_ms has no effect without on_auditor_failure: hold (base.yaml:4)"]


FLAGS_THINKING = "extends: balanced\nthinking: {actions: {harmful: flag}}"


def test_an_action_that_a_phases_own_from_a_base_outvotes_is_told_with_both_places(tmp_path: Path) -> None:
    said = warnings_of(tmp_path, "extends: base\nactions: {harmful: redact}", base=FLAGS_THINKING)
    assert "thinking.actions.harmful (base.yaml:3) decides for thinking, not actions.harmful (acme.yaml:3)" in said


def test_each_phase_and_level_that_a_base_decides_is_told(tmp_path: Path) -> None:
    base = "answer: {actions: {harmful: flag, potentially_harmful: flag}}\nthinking: {actions: {harmful: flag}}"
    said = warnings_of(tmp_path, "extends: middle\nactions: {harmful: cut}", middle="extends: base", base=base)
    assert [each for each in said if "decides" in each] == [
        "thinking.actions.harmful (base.yaml:3) decides for thinking, not actions.harmful (acme.yaml:3)",
        "answer.actions.harmful (base.yaml:2) decides for answer, not actions.harmful (acme.yaml:3)",
    ]


@pytest.mark.parametrize(
    ("base", "text"),
    [
        (FLAGS_THINKING, "thresholds: {harmful: 0.4}"),
        (f"{FLAGS_THINKING}\nactions: {{harmful: cut}}", "thresholds: {harmful: 0.4}"),
        (FLAGS_THINKING, "actions: {potentially_harmful: flag}"),
        (FLAGS_THINKING, "actions: {harmful: flag}"),
        (FLAGS_THINKING, "actions: {harmful: redact}\nthinking: {actions: {harmful: flag}}"),
        (FLAGS_THINKING, "actions: {harmful: redact}\nthinking: {actions: {harmful: null}}"),
        ("extends: balanced\nactions: {harmful: redact}", "thinking: {actions: {harmful: cut}}"),
    ],
    ids=["unsaid", "in the base alone", "another level", "the same", "said again", "taken back", "the phase is nearer"],
)
def test_a_phases_own_action_that_surprises_nobody_is_no_doubt(tmp_path: Path, base: str, text: str) -> None:
    assert not any("decides" in each for each in warnings_of(tmp_path, f"extends: base\n{text}", base=base))


def test_what_decides_for_thinking_that_is_withheld_is_no_doubt(tmp_path: Path) -> None:
    said = warnings_of(
        tmp_path, "extends: base\nthinking: {mode: withhold}\nactions: {harmful: cut}", base=FLAGS_THINKING
    )
    assert not any("decides" in each for each in said)


def test_growth_of_one_says_the_same_as_first_and_max_alike(tmp_path: Path) -> None:
    assert warnings_of(tmp_path, "boundary: {first: 4, growth: 1.0, max: 4}") == []


@pytest.mark.parametrize("preset", sorted(path.stem for path in PRESETS.glob("*.yaml")))
@pytest.mark.parametrize("mode", ["hold", "lag", "withhold", "monitor"])
def test_extending_a_preset_calls_none_of_its_settings_idle(tmp_path: Path, preset: str, mode: str) -> None:
    said = warnings_of(tmp_path, f"extends: {preset}\nthinking: {{mode: {mode}}}\nactions: {{harmful: cut}}")
    assert not any("has no effect" in warning for warning in said)


def test_inline_thinking_that_is_monitored_is_guarded_like_the_answer_so_its_actions_count(tmp_path: Path) -> None:
    said = warnings_of(tmp_path, "thinking: {mode: monitor, actions: {harmful: redact}}\nmessages: {redaction: x}")
    assert not any("has no effect" in warning for warning in said)
