"""What counts in the end, where it came from, and what follows from the modes."""

from __future__ import annotations

from pathlib import Path

import pytest

from guardtrace_proxy.policy.explain import consequences, rows
from guardtrace_proxy.policy.loading import PRESETS, load_policy
from guardtrace_proxy.policy.schema import Policy
from tests.effects import leaves


def explained(folder: Path, **files: str) -> dict[str, tuple[object, str, str | None]]:
    """Value that counts, place, and the key that decides, by setting; the last file is the policy."""
    for name, content in files.items():
        (folder / f"{name}.yaml").write_text(f"version: 1\n{content}\n", "utf-8")
    found = {}
    for row in rows(load_policy(folder / f"{name}.yaml")):
        counts = row.by or row
        found[row.key] = (counts.value, counts.origin.replace(f"{folder}/", ""), row.by and row.by.key)
    return found


def test_every_setting_has_a_row_in_the_schemas_order() -> None:
    assert [row.key for row in rows(load_policy(PRESETS / "strict.yaml"))] == [key for key, _ in leaves(Policy)]


def test_values_come_through_several_files(tmp_path: Path) -> None:
    told = explained(
        tmp_path,
        root="extends: strict\nmessages:\n  cut: Stopped.\nactions: {harmful: redact}",
        team="extends: root\n\nthinking: {actions: {harmful: flag}}",
        acme="extends: team\nanswer:\n  actions:\n    potentially_harmful: flag",
    )
    assert told["messages.cut"] == ("Stopped.", "root.yaml:4", None)
    assert told["thinking.actions.harmful"] == ("flag", "team.yaml:4", None)
    assert told["thinking.actions.potentially_harmful"] == ("cut", "preset strict:6", "actions.potentially_harmful")
    assert told["answer.actions.harmful"] == ("redact", "root.yaml:5", "actions.harmful")
    assert told["answer.actions.potentially_harmful"] == ("flag", "acme.yaml:5", None)
    assert told["boundary.max"] == (64, "preset strict:4", None)
    assert told["redaction.localize"] == (False, "default", None)


def test_a_null_gives_the_decision_back_to_the_policys_own_action(tmp_path: Path) -> None:
    told = explained(
        tmp_path,
        base="extends: balanced\nthinking: {actions: {harmful: redact}}",
        acme="extends: base\nthinking: {actions: {harmful: null}}",
    )
    assert told["thinking.actions.harmful"] == ("cut", "preset balanced:7", "actions.harmful")


def test_withheld_thinking_goes_nowhere_whatever_its_field(tmp_path: Path) -> None:
    told = explained(tmp_path, acme="thinking: {mode: withhold}\nreasoning_field: reasoning")
    assert told["reasoning_field"] == ("strip", "acme.yaml:2", "thinking.mode")


TOGETHER = "the answer is judged together with the thinking"
WITHOUT = "the answer is judged without the thinking"
NEVER = "clients never get the thinking"
RECORDED = "verdicts on the thinking are only recorded"
MOVED = (
    "in chat completions clients find all thinking in reasoning, inline thinking too, without its tags; in the other "
    "APIs it leaves where it came"
)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, [TOGETHER]),
        (
            {"thinking": {"mode": "lag", "max_lag": 9}},
            [
                "up to 9 tokens of the thinking leave ahead of their verdict, so that much may leak",
                TOGETHER,
                "inline thinking is under mode hold, the stricter of both, since it may never close",
            ],
        ),
        ({"thinking": {"mode": "withhold"}}, [RECORDED, NEVER, WITHOUT]),
        ({"reasoning_field": "strip"}, [f"{NEVER}; a cut in it still ends the reply", WITHOUT]),
        (
            {"reasoning_field": "reasoning"},
            [MOVED, TOGETHER],
        ),
        (
            {"thinking": {"mode": "monitor"}},
            [RECORDED, WITHOUT, "inline thinking is under mode hold, the stricter of both, since it may never close"],
        ),
        (
            {"thinking": {"mode": "monitor"}, "answer": {"mode": "monitor"}},
            [
                RECORDED,
                "verdicts on the answer are only recorded",
                WITHOUT,
                "replies are never cut or redacted, and an auditor that fails changes nothing",
            ],
        ),
    ],
)
def test_what_follows_from_the_modes(settings: dict[str, object], said: list[str]) -> None:
    assert list(consequences(Policy.model_validate({"version": 1, **settings}))) == said
