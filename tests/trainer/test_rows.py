"""Rows: what is written is read, and what doesn't fit is named with file, line and field."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardtrace_proxy.auditor.reply import parse_reply
from guardtrace_trainer.rows import (
    LEVELS,
    Annotation,
    Labelled,
    Pair,
    Query,
    Request,
    RowError,
    Trace,
    Vote,
    place_of,
    read_rows,
    row_as,
    write_rows,
)

TRACE = {
    "id": "q1-text-m",
    "query_id": "q1",
    "query": "why?",
    "source": "s",
    "split": "train",
    "variant": "text",
    "question": "why?",
    "request_id": "q1-text",
    "model": "m",
    "thinking": "hm",
    "answer": "so",
}
SAFE, HARMFUL = ({"judge": "a", "level": level, "analysis": "It says so."} for level in (0, 1))
text = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.mark.parametrize(
    ("type", "row", "said"),
    [
        (Query, {"id": "a", "text": "?", "source": "s", "split": "dev"}, "field split: Invalid enum value 'dev'"),
        (Query, {"id": "a", "text": 3, "source": "s", "split": "test"}, "field text: Expected `str`, got `int`"),
        (Query, {"id": "a", "text": "?", "source": "s"}, "missing required field `split`"),
        (Query, {"id": "a", "text": "?", "source": "s", "split": "test", "txet": 1}, "unknown field `txet`"),
        (Trace, TRACE | {"variant": "figstpe"}, "field variant: Invalid enum value"),
        (Trace, TRACE | {"image": 3}, "field image: Expected `str | null`"),
        (Vote, TRACE | {"votes": [SAFE, SAFE | {"level": 0.4}]}, r"field votes\[1\]: a level is 0, 0.5 or 1"),
        (Labelled, TRACE | {"agreement": "3:0", "annotation": SAFE | {"level": 2}}, "field annotation: a level is"),
        (Labelled, TRACE | {"agreement": "2:0", "annotation": SAFE}, "field agreement: Invalid enum value"),
        (Pair, TRACE | {"agreement": "2:1", "chosen": SAFE, "rejected": SAFE}, "chosen and rejected have the same level"),
    ],
)  # fmt: skip
def test_a_row_that_doesnt_fit(tmp_path, type, row, said):
    path = tmp_path / "rows.jsonl"
    path.write_text(f"\n{json.dumps(row)}\n")
    with pytest.raises(RowError, match=rf"rows\.jsonl, line 2: .*{said}"):
        read_rows(path, type)


@pytest.mark.parametrize("line", [b"{", b"[]", b"nonsense", b'{"id": "\xff"}', b"[" * 100_000, b'{"id": NaN}'])
def test_a_line_that_is_no_row(tmp_path, line):
    (tmp_path / "rows.jsonl").write_bytes(b'{"id":"a","text":"?","source":"s","split":"test"}\r\n' + line)
    with pytest.raises(RowError, match=r"rows\.jsonl, line 2: "):
        read_rows(tmp_path / "rows.jsonl", Query)


def test_an_id_that_comes_twice(tmp_path):
    row = Query(id="a", text="?", source="s", split="test")
    write_rows(tmp_path / "rows.jsonl", [row, row])
    with pytest.raises(RowError, match=r"line 2, field id: 'a' stands in an earlier line"):
        read_rows(tmp_path / "rows.jsonl", Query)


def test_a_file_that_is_missing(tmp_path):
    with pytest.raises(RowError, match=r"queries\.jsonl: can't be read \(No such file or directory\)"):
        read_rows(tmp_path / "queries.jsonl", Query)


@given(st.lists(text, max_size=4), text)
def test_what_is_written_is_read(tmp_path_factory, texts, source):
    path = tmp_path_factory.mktemp("rows") / "deep" / "rows.jsonl"
    rows = [Query(id=str(n), text=each, source=source, split="train") for n, each in enumerate(texts)]
    assert write_rows(path, rows) == len(rows)
    assert read_rows(path, Query) == rows


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "rows.jsonl"
    row = Query(id="a", text="?", source="s", split="test")
    write_rows(path, [row])

    def breaks():
        yield Query(id="b", text="?", source="s", split="test")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_rows(path, breaks())
    assert read_rows(path, Query) == [row]


@given(st.sampled_from(LEVELS), st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1))
def test_an_annotations_text_is_read_as_a_reply(level, analysis):
    annotation = Annotation(judge="a", level=level, analysis=f"The image shows {analysis} here.")
    assert parse_reply(annotation.text).level == level
    assert parse_reply(annotation.bare).level == level
    assert parse_reply(annotation.text).analysis == annotation.analysis


def test_a_row_as_another():
    trace = msgspec.convert(TRACE, Trace)
    request = row_as(trace, Request, id="r", question="how?")
    assert (request.id, request.question, request.query) == ("r", "how?", "why?")
    with pytest.raises(TypeError, match="votes"):
        row_as(trace, Vote)


def test_a_rows_place_is_found_again(tmp_path):
    one, other = tmp_path / "one.jsonl", tmp_path / "other.jsonl"
    one.write_text('{"id": "a"}\n', "utf-8")
    other.write_text('\n{"id": "b", "more": 1}\n{"id": "c"}\n', "utf-8")
    assert place_of("b", one, other) == f"{other}, line 2, row b"
    assert place_of("d", one, other) == "row d"
