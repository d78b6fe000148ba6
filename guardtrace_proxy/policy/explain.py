"""What a policy comes to: each value that counts with its origin, and what follows from its modes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from guardtrace_proxy.policy.doubts import PHASES, STRICTNESS, acting
from guardtrace_proxy.policy.loading import LoadedPolicy
from guardtrace_proxy.policy.schema import Mode, PhaseSettings, Policy, ReasoningField


class Row(NamedTuple):
    """One setting as its files say it, and ``by`` which other row it is decided, where it is."""

    key: str
    value: Any
    origin: str
    by: Row | None = None


def rows(loaded: LoadedPolicy) -> Iterator[Row]:
    """Every setting of a policy, in the schema's order."""
    values = dict(_flat(loaded.policy.model_dump(mode="json"), ""))
    own = {key: Row(key, value, loaded.origins[key]) for key, value in values.items()}
    for key, row in own.items():
        section, _, rest = key.partition(".")
        if section in PHASES and rest.startswith("actions.") and row.value is None:
            yield row._replace(by=own[rest])
        elif key == "reasoning_field" and row.value != loaded.policy.thinking_goes:
            # Thinking that is withheld goes nowhere, wherever it should have gone.
            yield row._replace(by=own["thinking.mode"]._replace(value=loaded.policy.thinking_goes.value))
        else:
            yield row


def _flat(content: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def consequences(policy: Policy) -> Iterator[str]:
    """What follows from the modes and can't be read off a single value."""
    acts = acting(policy)
    for name, settings in (("thinking", policy.thinking), ("answer", policy.answer)):
        said = _of_mode(name, settings)
        if said:
            yield said
    thinking, answer, goes = policy.thinking.mode, policy.answer.mode, policy.thinking_goes
    if goes is ReasoningField.STRIP:
        yield "clients never get the thinking" + ("; a cut in it still ends the reply" if "thinking" in acts else "")
    elif goes is not ReasoningField.AS_IS:
        yield (
            f"in chat completions clients find all thinking in {goes.value}, inline thinking too, without its tags; "
            "in the other APIs it leaves where it came"
        )
    seen = "without" if policy.thinking_is_unseen else "together with"
    yield f"the answer is judged {seen} the thinking"
    if thinking is not answer and thinking is not Mode.WITHHOLD:
        stricter = max(thinking, answer, key=STRICTNESS.index)
        yield f"inline thinking is under mode {stricter.value}, the stricter of both, since it may never close"
    if not acts:
        yield "replies are never cut or redacted, and an auditor that fails changes nothing"


def _of_mode(name: str, settings: PhaseSettings) -> str | None:
    if settings.mode is Mode.LAG:
        return f"up to {settings.max_lag} tokens of the {name} leave ahead of their verdict, so that much may leak"
    if settings.mode in (Mode.MONITOR, Mode.WITHHOLD):
        return f"verdicts on the {name} are only recorded"
    return None
