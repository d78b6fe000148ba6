"""What the demo shows, as text."""

from __future__ import annotations

import io

from rich.console import Console

from guardtrace_proxy.demo.compare import Comparison, Received
from guardtrace_proxy.demo.screen import SHOWN_CHARS, comparison_view, print_summary, summary_table, timeline_table
from guardtrace_proxy.gate import Decided
from guardtrace_proxy.policy.decision import Decision
from guardtrace_proxy.policy.levels import Level, Verdict
from guardtrace_proxy.policy.schema import Action
from guardtrace_proxy.wire.events import Phase
from tests.demo.scripted import a_trace, harmful, verdict

TIMELINE = [
    Decided(0, Phase.THINKING, Decision(Level.SAFE, Action.PASS), verdict(), None, True, 16, 16, 12.6),
    Decided(0, Phase.THINKING, Decision(Level.HARMFUL, Action.CUT), Verdict(Level.HARMFUL), None, True, 7, 23, 3.2),
    Decided(0, Phase.ANSWERING, Decision(None, Action.CUT), None, "timeout", True, 5, 28, 1.0),
]


def shown(what, width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    what(console) if callable(what) else console.print(what)
    return console.file.getvalue()


def a_comparison(**more) -> Comparison:
    comparison = Comparison(harmful(**more), timeline=list(TIMELINE))
    comparison.without = Received("Let me think. Then HARM is done so.", "No.", "stop", None, 4.0, True)
    comparison.through = Received("Let me think. ", "Stopped.", "content_filter", None, 61.5, True)
    return comparison


def test_both_sides_and_the_verdicts_are_shown():
    text = shown(comparison_view(a_comparison(image="data:image/png;base64,AA==")))
    for part in ("asked: How?", "[with an image]", "without the proxy", "through the proxy", "Then HARM is done so."):
        assert part in text
    assert "finish_reason: content_filter" in text
    assert "base64" not in text
    rows = [line.split() for line in text.splitlines()[-3:]]
    assert rows[0] == "16 16 thinking label 0 0.950 0.050 0.000 1 13 pass".split()
    assert rows[1] == "23 7 thinking annotate 1 0 3 cut".split()
    assert rows[2] == "28 5 answering failed 1 timeout".split()


def test_before_anything_came():
    text = shown(comparison_view(Comparison(a_trace())))
    assert "asked: How?" in text
    assert "…" in text


def test_long_texts_show_their_end():
    comparison = Comparison(a_trace())
    comparison.through.reasoning = "a " * 2500 + "the-end"
    text = shown(comparison_view(comparison))
    assert "the-end" in text
    assert text.count("a") < SHOWN_CHARS + 200


def test_markup_in_a_reply_is_text():
    comparison = Comparison(a_trace())
    comparison.through = Received("[red]Hm[/red] [/nonsense]", "[bold]x[/bold]", error="[/broken]")
    text = shown(comparison_view(comparison))
    for part in ("[red]Hm[/red] [/nonsense]", "[bold]x[/bold]", "error  [/broken]"):
        assert part in text


def test_markup_in_a_name_or_a_finish_is_text():
    comparison = Comparison(a_trace(name="[/x]"))
    comparison.through = Received("", "", "[/stop]", done=True)
    assert "finish_reason: [/stop]" in shown(comparison_view(comparison))
    assert "[/x]" in shown(lambda console: print_summary(console, [comparison]))


def test_a_narrow_screen_breaks_nothing():
    assert shown(comparison_view(a_comparison()), width=40)


def test_the_last_table():
    benign = Comparison(a_trace())
    text = shown(lambda console: print_summary(console, [a_comparison(), benign]))
    (row,) = [line for line in text.splitlines() if line.split()[:1] == ["harmful"] and "cut" in line]
    assert row.split() == ["harmful", "0", "16", "62", "4", "3", "1", "1", "cut"]
    assert "–" in text
    assert "leaked: tokens from the first unsafe" in text


def cut_short(text: str) -> list[str]:
    """Lines in which a cell lost something."""
    return [line for line in text.splitlines() if "…" in line]


def test_the_verdicts_are_whole_at_80_columns():
    timeline = [
        Decided(0, Phase.ANSWERING, Decision(Level.SAFE, Action.REDACT), verdict(), None, True, 916, 12_316, 10_612.6),
        Decided(
            0,
            Phase.THINKING,
            Decision(Level.SAFE, Action.CUT),
            Verdict(Level.POTENTIALLY_HARMFUL),
            None,
            True,
            9,
            9,
            3.2,
        ),
        Decided(0, Phase.ANSWERING, Decision(None, Action.CUT), None, "circuit_open", True, 5, 28, 1.0),
    ]
    text = shown(timeline_table(timeline), 80)
    assert cut_short(text) == []
    first, *_, last = text.splitlines()[-3:]
    assert first.split() == "12316 916 answering label 0 0.950 0.050 0.000 1 10613 redact".split()
    assert last.split() == "28 5 answering failed 1 circuit_open".split()
    for name in ("tokens", "P(0.5)", "audit", "held", "action"):
        assert name in text


def test_the_last_table_is_whole_at_80_columns():
    slow = a_comparison(name="polite-answer-leaking-thoughts")
    slow.without.first_token_ms = slow.through.first_token_ms = 12_345.6
    refused = Comparison(a_trace(name="benign-arithmetic"))
    refused.through.error = "No."
    text = shown(summary_table([slow, refused]), 80)
    assert cut_short(text) == []
    rows = [line.split() for line in text.splitlines()]
    assert "polite-answer-leaking-thoughts 0 16 12346 12346 3 1 cut".split() in rows
    for name in ("leaked", "held", "TTFT", "without", "audits", "level", "action"):
        assert name in text


def test_a_long_name_of_a_trace_leaves_the_rest_of_its_row_whole():
    text = shown(summary_table([a_comparison(name="n" * 70)]), 80)
    assert cut_short(text) == []
    assert text.count("n" * 20) >= 2
    assert any(line.split()[1:] == "0 16 62 4 3 1 cut".split() for line in text.splitlines())


def test_a_wide_screen_shows_all_columns():
    text = shown(summary_table([a_comparison(name="polite-answer-leaking-thoughts")]), 100)
    assert "annotated" in text
    assert "audit ms  held ms  action" in shown(timeline_table(TIMELINE), 100)
