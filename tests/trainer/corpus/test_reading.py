"""Readers: what they take, and that they name file, line and field of what they don't."""

from __future__ import annotations

import re

import pytest

from guardtrace_trainer.corpus.reading import CATEGORIES, S_EVAL_RISKS, Layout, read_queries
from guardtrace_trainer.rows import RowError

S_EVAL = {"traceid": "1", "risk_type": "Crimes_and_Illegal_Activities", "prompt": "A question?", "ext": "{}"}


def read(path, **layout):
    return [(query.text, query.category, query.line) for query in read_queries(path, Layout(**layout))]


@pytest.mark.parametrize("name", ["query", "question", "prompt", "Behavior", "TEXT"])
def test_the_field_of_the_query_is_found(jsonl, name):
    assert read(jsonl({"id": 1, name: " What is tea? "})) == [("What is tea?", None, 1)]


def test_blank_lines_count_but_are_passed_over(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('\ufeff{"text": "one"}\n\n{"text": "two\\u2028lines"}\n', "utf-8")
    assert read(path) == [("one", None, 1), ("two\u2028lines", None, 3)]


def test_categories_are_ours_or_mapped(jsonl):
    path = jsonl({"query": "a b", "category": "Hate_Speech"}, {"query": "c d", "category": "Scams & Fraud"})
    renamed = {"scams and fraud": "crime and illegal activities"}
    assert [row[1] for row in read(path, renamed=renamed)] == ["hate speech", "crime and illegal activities"]
    assert [row[1] for row in read(path, categories=False)] == [None, None]


def test_named_fields(jsonl):
    path = jsonl({"prompt": "x", "body": "the query", "kind": "extremism"})
    assert read(path, text_field="body", category_field="kind") == [("the query", "extremism", 1)]


def test_s_eval_is_known_by_its_fields(jsonl):
    assert read(jsonl(S_EVAL)) == [("A question?", "crime and illegal activities", 1)]
    assert read(jsonl(S_EVAL), format="s-eval", categories=False) == [("A question?", None, 1)]


def test_s_eval_s_risks_as_its_readme_spells_them(jsonl):
    path = jsonl({**S_EVAL, "risk_type": "Inappropriate Suggestions (IS)"})
    assert read(path)[0][1] == "misleading advice"
    assert len(S_EVAL_RISKS) == 8
    assert {*S_EVAL_RISKS.values(), "other"} == set(CATEGORIES)


def test_csv_with_bom_quotes_and_line_breaks(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(
        '\ufeffid,prompt,category\r\n1,"Two\r\nlines, ""quoted""",extremism\r\n\r\n2,Next,other\r\n'.encode()
    )
    assert read(path) == [('Two\r\nlines, "quoted"', "extremism", 2), ("Next", "other", 5)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "one"}\n{"text": 2}\n', r"a\.jsonl, line 2, field text: expected text, got int"),
        ("a.jsonl", '{"text": "one"}\n{"txt": "two"}\n', r"line 2, field text: missing; the line has txt"),
        ("a.jsonl", '{"text": "one"}\n{"text": " ?! "}\n', r"line 2, field text: holds no word"),
        ("a.jsonl", '{"text": "one"}\n[1]\n', r"line 2: expected a JSON object"),
        ("a.jsonl", '{"text": ' + "[" * 100_000, r"line 1: expected a JSON object"),
        ("a.jsonl", '{"text": "one"\n', r"line 1: expected a JSON object"),
        (
            "a.jsonl",
            '{"a": "one"}\n',
            r"no field is known as the query; name it by --text-field, in a recipe text_field.*has a",
        ),
        ("a.jsonl", '{"text": "a", "prompt": "b"}\n', r"several fields could be the query \(text, prompt\)"),
        ("a.jsonl", '{"text": "a", "category": "theft"}\n', r"line 1, field category: 'theft' is no known category"),
        (
            "a.jsonl",
            '{"text": "a", "category": "theft"}\n',
            r"by --category-as 'theft'=OURS, .* category_as: \{'theft': OURS\}",
        ),
        ("a.jsonl", '{"text": "a", "category": "theft"}\n', r"by --no-categories, in a recipe categories: false"),
        (
            "a.jsonl",
            '{"text": "a", "category": "", "risk_category": ""}\n',
            r"by --category-field, in a recipe category_field",
        ),
        ("a.jsonl", "\n", r"a\.jsonl: holds no query"),
        ("a.csv", "text,n\none\n", r"a\.csv, line 2: 1 fields, but the header names 2"),
        ("a.csv", 'text\n"a\nb"\n"c" d\n', r"line 4: broken CSV"),
        ("a.csv", 'text\n"never closed\n', r"line 2: broken CSV"),
        ("a.csv", "text,text\na,b\n", r"line 1: expected a header whose names are there and differ"),
        ("a.csv", "text\n", r"holds no query"),
        ("a.txt", "one\n", r"JSONL or CSV\?.* or --format, in a recipe format"),
        ("a.jsonl", b'{"text": "one"}\n{"text": "\xff"}\n', r"line 2: isn't UTF-8"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RowError, match=message):
        read(path)


def test_an_unknown_risk_of_s_eval_is_refused_with_its_line(jsonl):
    path = jsonl(S_EVAL, {**S_EVAL, "risk_type": "Risks Involving Minors"})
    with pytest.raises(RowError, match=re.escape("line 2, field risk_type: 'Risks Involving Minors' is no known")):
        read(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(RowError, match=r"none\.jsonl: can't be read"):
        read(tmp_path / "none.jsonl")
