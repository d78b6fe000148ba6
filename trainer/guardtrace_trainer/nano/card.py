"""The table of the embedded auditor's card, from the results of several seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import mean
from typing import Any, NamedTuple

from guardtrace_trainer.nano.corpus import CUES

Result = dict[str, Any]


class Row(NamedTuple):
    """One figure: where it stands in a result, and whether more is better."""

    title: str
    read: Callable[[Result], float]
    higher_is_better: bool = True


def _at(*path: str) -> Callable[[Result], float]:
    def read(result: Result) -> float:
        value: Any = result
        for key in path:
            value = value[key]
        return float(value)

    return read


TITLES = {
    "text": "text",
    "pictogram": "pictogram",
    "words": "typographic (words in the image)",
    "text_new_goals": "text, goals held out too",
    "text_lines": "text, thinking in lines held out whole",
}
ROWS = (
    *(Row(f"macro-F1, {title}", _at("annotate", name, "macro_f1")) for name, title in TITLES.items()),
    *(Row(f"macro-F1 at depth `label`, {title}", _at("label", name, "macro_f1")) for name, title in TITLES.items()),
    Row("recall of the label tier at `escalate_at`", _at("label_tier", "recall")),
    Row("safe traces escalated", _at("label_tier", "safe_escalated"), False),
    *(
        Row(f"false alarms on safe prefixes, {title}", _at("prefixes", name, "false_alarm_rate"), False)
        for name, title in TITLES.items()
    ),
    Row("onset found at its sentence", lambda result: _onset_share(result, "exact")),
    Row("onset found ahead", lambda result: _onset_share(result, "ahead"), False),
    Row("onset found late", lambda result: _onset_share(result, "late"), False),
    Row("onset missed", lambda result: _onset_share(result, "missed"), False),
    *(
        Row(f"control: macro-F1, {TITLES[name]}, images {how}", _at("controls", f"{name}_{how}", "macro_f1"), False)
        for name in ("pictogram", "words")
        for how in ("shuffled", "blank")
    ),
    Row("macro-F1, hand-written, development half", _at("handwritten_dev", "macro_f1")),
    Row("macro-F1, hand-written, test half", _at("handwritten_test", "macro_f1")),
    Row("binary F1, hand-written, test half", _at("handwritten_test", "binary_f1")),
    Row("plain benign traces, of those judged: cut or redacted", _at("benign", "plain", "share"), False),
    Row("plain benign traces refused, too long for its context", _at("benign", "plain", "refused_share"), False),
)


def _onset_share(result: Result, when: str) -> float:
    """Over the sets of a cue each."""
    sets = [found["onsets"] for name, found in result["prefixes"].items() if name in CUES]
    share: float = sum(onsets.get(when, 0) for onsets in sets) / max(1, sum(sum(onsets.values()) for onsets in sets))
    return share


def table(results: Sequence[Result], shipped: int) -> str:
    """Markdown: mean, worst and shipped seed; rows that no result has are left out."""
    lines = ["| figure | mean | worst | shipped |", "|---|---|---|---|"]
    for row in ROWS:
        try:
            values = [row.read(result) for result in results]
        except (KeyError, TypeError):
            continue
        worst = min(values) if row.higher_is_better else max(values)
        lines.append(f"| {row.title} | {mean(values):.3f} | {worst:.3f} | {values[shipped]:.3f} |")
    return "\n".join(lines)


def median_seed(results: Sequence[Result]) -> int:
    """The index of the seed that ships: the median on the development half of the hand-written set."""
    order = sorted(range(len(results)), key=lambda index: results[index]["handwritten_dev"]["macro_f1"])
    return order[len(order) // 2]
