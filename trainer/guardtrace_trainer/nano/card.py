"""The table of the embedded auditor's card, from the results of several seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import mean
from typing import Any, NamedTuple

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


CUE_TITLES = {
    "text": "text, goals held out too",
    "text_seen_goals": "text, goals seen",
    "pictogram": "pictogram",
    "words": "typographic (words in the image)",
}
ROWS = (
    *(Row(f"macro-F1, {title}", _at("annotate", cue, "macro_f1")) for cue, title in CUE_TITLES.items()),
    *(Row(f"macro-F1 at depth `label`, {title}", _at("label", cue, "macro_f1")) for cue, title in CUE_TITLES.items()),
    Row("false alarms on safe prefixes", _at("prefixes", "false_alarm_rate"), higher_is_better=False),
    Row("onset found at its sentence", lambda result: _onset_share(result, "exact")),
    Row("onset found ahead", lambda result: _onset_share(result, "ahead"), higher_is_better=False),
    Row("onset found late", lambda result: _onset_share(result, "late"), higher_is_better=False),
    Row("onset missed", lambda result: _onset_share(result, "missed"), higher_is_better=False),
    *(
        Row(f"control: macro-F1, {CUE_TITLES[cue]}, images {how}", _at("controls", f"{cue}_{how}", "macro_f1"), False)
        for cue in ("pictogram", "words")
        for how in ("shuffled", "blank")
    ),
    Row("macro-F1, hand-written, development half", _at("handwritten_dev", "macro_f1")),
    Row("macro-F1, hand-written, test half", _at("handwritten_test", "macro_f1")),
    Row("binary F1, hand-written, test half", _at("handwritten_test", "binary_f1")),
    Row("plain benign traces cut or redacted", _at("benign", "plain", "share"), higher_is_better=False),
)


def _onset_share(result: Result, when: str) -> float:
    onsets = result["prefixes"]["onsets"]
    share: float = onsets.get(when, 0) / max(1, sum(onsets.values()))
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
