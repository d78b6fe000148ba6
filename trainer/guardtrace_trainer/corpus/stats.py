"""``data stats``: what a corpus is composed of, beside the composition that the paper gives.

The paper's figures: GuardTrace-VL (arXiv 2511.20994), its tables on the data set.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Group
from rich.table import Table

from guardtrace_trainer.corpus.expand import REQUESTS
from guardtrace_trainer.corpus.queries import DUPLICATES, QUERIES, Duplicate
from guardtrace_trainer.rows import LEVELS, Labelled, Pair, Query, Request, Row, RowError, Trace, Vote, read_rows

PAPER: dict[str, Any] = {
    "source": "GuardTrace-VL, arXiv 2511.20994",
    "train": 9862,
    "agreement": {"3:0": 4625, "2:1": 4950, "1:1:1": 287},
    "variants": {"text": 1612, "irrelevant": 1453, "aligned": 1965, "figstep": 2876, "hades": 1625, "csdj": 331},
    "labels": {
        "train": {"0": 0.437, "0.5": 0.246, "1": 0.317},
        "test": {"0": 0.461, "0.5": 0.141, "1": 0.398},
    },
    "test": {"S-Eval-VL": 600, "HADES-Eval": 400, "MM-Eval": 500, "MMJ-Eval": 500},
}
"""The training set's counts after judging and screening; ``variants`` are all of it but S-Eval's in four variants."""
TRACES, VOTES = "traces.jsonl", "votes.jsonl"
EXPERT_PAIRS, EXPERT_TEST = "expert_pairs.jsonl", "expert_test.jsonl"
"""What experts decided where the judges all differ: of the train split, and of the test split."""
AGREEMENTS = ("3:0", "2:1", "1:1:1")
SPLITS = ("train", "test")
AnyRow = TypeVar("AnyRow", bound=Row)


def stats(corpus: Path) -> dict[str, Any]:
    """The counts of all files that a corpus has. What isn't there yet isn't in the result.

    Raises:
        RowError: there is none of them, or one doesn't fit.
    """
    queries = _rows(corpus / QUERIES, Query)
    duplicates = _rows(corpus / DUPLICATES, Duplicate)
    requests = _rows(corpus / REQUESTS, Request)
    traces = _rows(corpus / TRACES, Trace)
    votes = _rows(corpus / VOTES, Vote)
    pairs, tested = _rows(corpus / EXPERT_PAIRS, Pair) or [], _rows(corpus / EXPERT_TEST, Labelled) or []
    experts = {_trace_id(row): row.chosen.level for row in pairs} | {row.id: row.annotation.level for row in tested}
    if all(rows is None for rows in (queries, requests, traces, votes)):
        raise RowError(f"{corpus}: holds none of {QUERIES}, {REQUESTS}, {TRACES}, {VOTES}; is it a corpus?")
    found: dict[str, Any] = {}
    if queries is not None:
        found["queries"] = {
            "all": len(queries),
            "duplicates": len(duplicates or ()),
            "by_split": _counted(query.split for query in queries),
            "by_source": _per_split((query.source, query.split) for query in queries),
            "by_category": _per_split((query.category or "none given", query.split) for query in queries),
        }
    if requests is not None:
        found["requests"] = {
            "all": len(requests),
            "by_variant": _per_split((request.variant, request.split) for request in requests),
        }
    if traces is not None:
        found["traces"] = {
            "all": len(traces),
            "by_model": _table((trace.model, trace.variant) for trace in traces),
        }
    if votes is not None:
        found["votes"] = _of_votes(votes, experts)
    return {**found, "paper": PAPER}


def agreement(vote: Vote) -> str | None:
    """3:0, 2:1 or 1:1:1; None for a jury that isn't of three."""
    if len(vote.votes) != 3:
        return None
    return AGREEMENTS[len({annotation.level for annotation in vote.votes}) - 1]


def label(vote: Vote) -> float | None:
    """The level that most of a jury gave; None where no level has more than half of the votes."""
    level, count = Counter(annotation.level for annotation in vote.votes).most_common(1)[0]
    return level if 2 * count > len(vote.votes) else None


def _of_votes(votes: Sequence[Vote], experts: Mapping[str, float]) -> dict[str, Any]:
    labels: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    for vote in votes:
        level = label(vote) if vote.votes else None
        level = experts.get(vote.id) if level is None else level
        labels[vote.split]["none yet" if level is None else f"{level:g}"] += 1
    return {
        "all": len(votes),
        "by_agreement": _per_split((agreement(vote) or "another jury", vote.split) for vote in votes),
        "by_variant": _per_split((vote.variant, vote.split) for vote in votes),
        "labels": {split: dict(sorted(counts.items())) for split, counts in labels.items()},
        "shares": {split: _shares(counts) for split, counts in labels.items()},
    }


def _trace_id(pair: Pair) -> str:
    """That of the trace which experts decided: of two pairs of one trace each is named after what it rejects."""
    return pair.id.removesuffix(f"-not-{pair.rejected.level:g}")


def _shares(counts: Counter[str]) -> dict[str, float]:
    names = [f"{level:g}" for level in LEVELS]
    whole = sum(counts[name] for name in names)
    return {name: round(counts[name] / whole, 4) for name in names} if whole else {}


def _rows(path: Path, type: type[AnyRow]) -> list[AnyRow] | None:
    return read_rows(path, type) if path.exists() else None


def _counted(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def _per_split(values: Iterable[tuple[str, str]]) -> dict[str, dict[str, int]]:
    return {name: {split: row.get(split, 0) for split in SPLITS} for name, row in _table(values).items()}


def _table(values: Iterable[tuple[str, str]]) -> dict[str, dict[str, int]]:
    table: dict[str, Counter[str]] = {}
    for row, column in values:
        table.setdefault(row, Counter())[column] += 1
    return {row: dict(sorted(counts.items())) for row, counts in sorted(table.items())}


def tables(found: dict[str, Any]) -> Group:
    """What :func:`stats` found, for a terminal."""
    shown: list[Table | str] = []
    if "queries" in found:
        queries = found["queries"]
        heading = f"Queries: {queries['all']}, and {queries['duplicates']} near-duplicates left out"
        shown += [heading, _split_table("source", queries["by_source"])]
        shown += [_split_table("category", queries["by_category"])]
    if "requests" in found:
        requests = found["requests"]
        shown += [f"Requests: {requests['all']}", _split_table("variant", requests["by_variant"])]
    if "traces" in found:
        shown += [f"Traces: {found['traces']['all']}", _traces_table(found["traces"])]
    if "votes" in found:
        heading = f"Judged traces: {found['votes']['all']}. The paper's are those of {PAPER['source']}: training set"
        shown += [heading, *_votes_tables(found["votes"])]
    else:
        shown += [f"The paper's training set ({PAPER['source']}): {PAPER['train']}", _paper_table()]
    return Group(*(line for part in shown for line in (part, "")))


def _new(*columns: str) -> Table:
    table = Table(show_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", style="dim" if column == "paper" else "")
    return table


def _split_table(name: str, rows: dict[str, dict[str, int]]) -> Table:
    table = _new(name, *SPLITS)
    for row, counts in rows.items():
        table.add_row(row, *(str(counts[split]) for split in SPLITS))
    return table


def _traces_table(traces: dict[str, Any]) -> Table:
    variants = sorted({variant for row in traces["by_model"].values() for variant in row})
    table = _new("model", *variants)
    for model, row in traces["by_model"].items():
        table.add_row(model, *(str(row.get(variant, 0)) for variant in variants))
    return table


def _votes_tables(votes: dict[str, Any]) -> list[Table]:
    agreements = _new("agreement", *SPLITS, "paper")
    for name in dict.fromkeys((*AGREEMENTS, *votes["by_agreement"])):
        _with_paper(agreements, name, votes["by_agreement"], PAPER["agreement"])
    variants = _new("variant", *SPLITS, "paper")
    for name in dict.fromkeys((*PAPER["variants"], *votes["by_variant"])):
        _with_paper(variants, name, votes["by_variant"], PAPER["variants"])
    labels = _new("label", *(column for split in SPLITS for column in (split, "share", "paper")))
    levels = (f"{level:g}" for level in LEVELS)
    for name in dict.fromkeys((*levels, *votes["labels"]["train"], *votes["labels"]["test"])):
        cells = [cell for split in SPLITS for cell in _label_cells(votes, split, name)]
        labels.add_row(name, *cells)
    return [agreements, variants, labels]


def _with_paper(table: Table, name: str, rows: dict[str, dict[str, int]], paper: dict[str, int]) -> None:
    counts = rows.get(name, {})
    table.add_row(name, *(str(counts.get(split, 0)) for split in SPLITS), str(paper.get(name, "")))


def _label_cells(votes: dict[str, Any], split: str, name: str) -> tuple[str, str, str]:
    share, paper = votes["shares"][split].get(name), PAPER["labels"][split].get(name)
    count = votes["labels"][split].get(name, 0)
    return str(count), "" if share is None else f"{share:.1%}", "" if paper is None else f"{paper:.1%}"


def _paper_table() -> Table:
    table = _new("variant", "paper")
    for row, count in PAPER["variants"].items():
        table.add_row(row, str(count))
    return table
