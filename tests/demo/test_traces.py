"""Trace files, our own and recorded ones, become traces ready for replay; bad ones are refused with file and line."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardtrace_proxy.demo.run import TRACES
from guardtrace_proxy.demo.traces import DemoTrace, TraceError, load_traces, pick, pieces, tokens_in

LEAST = {"question": "How?", "thinking": "First. Then harm. End.", "answer": "No."}
SENTENCES = ["First.", "Then harm.", "End."]


def write(folder: Path, *rows: Any) -> Path:
    path = folder / "traces.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return path


def read(folder: Path, **more: Any) -> DemoTrace:
    return load_traces(write(folder, {**LEAST, **more}))[0]


def test_the_demo_has_its_four_traces():
    traces = load_traces(TRACES / "demo.jsonl")
    assert len(traces) == 4
    assert len({trace.name for trace in traces}) == 4
    assert [trace.names_onset for trace in traces].count(False) == 1
    assert [trace.image is not None for trace in traces].count(True) == 1
    assert any(trace.answer_onset is not None and trace.thinking_onset is None for trace in traces)
    assert all(trace.dialect == "fields" for trace in traces)
    for trace in traces:
        for onset, text in ((trace.thinking_onset, trace.thinking), (trace.answer_onset, trace.answer)):
            assert onset is None or text[onset].strip()


def test_the_least_row(tmp_path):
    trace = read(tmp_path)
    assert (trace.name, trace.image, trace.raw, trace.names_onset) == ("traces-1", None, None, False)
    assert trace.messages == [{"role": "user", "content": "How?"}]


def test_names_and_fields_of_other_data_sets(tmp_path):
    path = write(
        tmp_path, {**LEAST, "id": "r-7", "source": {"x": 1}}, "", {**LEAST, "id": "r-8", "name": "eight"}, LEAST
    )
    assert [trace.name for trace in load_traces(path)] == ["r-7", "eight", "traces-4"]


def test_an_answer_may_be_missing(tmp_path):
    assert load_traces(write(tmp_path, {"question": "?", "thinking": "Hm."}))[0].answer == ""


@pytest.mark.parametrize(("sentence", "onset"), [(0, 0), (1, 7), (2, 18)])
def test_the_onset_is_the_first_character_of_the_unsafe_sentence(tmp_path, sentence, onset):
    trace = read(tmp_path, thinking_sentences=SENTENCES, onset_sentence=sentence)
    assert trace.thinking_onset == onset
    assert trace.thinking[onset:].startswith(SENTENCES[sentence])


def test_a_sentence_that_occurs_twice_is_found_in_its_place(tmp_path):
    trace = read(tmp_path, thinking="Hm. So. Hm.", thinking_sentences=["Hm.", "So.", "Hm."], onset_sentence=2)
    assert trace.thinking_onset == 8


def test_an_image_becomes_the_same_bytes_in_a_data_url(tmp_path):
    (tmp_path / "a.PNG").write_bytes(b"\x89PNG...")
    trace = read(tmp_path, image="a.PNG")
    image, text = trace.messages[0]["content"]
    head, _, data = image["image_url"]["url"].partition(",")
    assert (head, base64.b64decode(data)) == ("data:image/png;base64", b"\x89PNG...")
    assert text == {"type": "text", "text": "How?"}


@pytest.mark.parametrize(
    ("raw", "dialect"),
    [
        (None, "fields"),
        ("<think>Hm.</think>No.", "inline"),
        ("◁think▷Hm.◁/think▷No.", "inline"),
        ("Hm.</think>No.", "open"),
        ("Hm.◁/think▷No.", "open"),
        ("No tags.", "inline"),
    ],
)
def test_the_dialect_of_raw_output(tmp_path, raw, dialect):
    assert read(tmp_path, raw=raw).dialect == dialect


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{nope", "Expected an object with question, thinking and answer"),
        ("[]", "Expected `object`"),
        ({"thinking": "x"}, "missing required field `question`"),
        ({"question": "x"}, "missing required field `thinking`"),
        ({**LEAST, "thinking": 3}, "Expected `str`, got `int` - at `$.thinking`"),
        ({**LEAST, "onset_sentence": 1}, "onset_sentence 1 needs that many thinking_sentences"),
        ({**LEAST, "onset_sentence": 3, "thinking_sentences": SENTENCES}, "onset_sentence 3 needs"),
        ({**LEAST, "onset_sentence": -1, "thinking_sentences": SENTENCES}, "onset_sentence -1 needs"),
        (
            {**LEAST, "onset_sentence": 1, "thinking_sentences": ["First.", "Gone."]},
            "thinking_sentences[1] doesn't occur",
        ),
        ({**LEAST, "image": "absent.png"}, "absent.png can't be read"),
        ({**LEAST, "image": "a.gif"}, "image a.gif: expected one of .png, .jpg, .jpeg, .webp"),
        ({**LEAST, "answer_onset": 3}, "answer_onset 3 lies outside the answer"),
        ({**LEAST, "answer_onset": -1}, "answer_onset -1 lies outside the answer"),
    ],
)
def test_bad_rows_are_told_with_file_and_line(tmp_path, row, said):
    path = write(tmp_path, LEAST, row)
    with pytest.raises(TraceError) as caught:
        load_traces(path)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert said in str(caught.value)


def test_files_that_cant_be_read(tmp_path):
    with pytest.raises(TraceError, match="can't be read"):
        load_traces(tmp_path / "absent.jsonl")
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\n")
    with pytest.raises(TraceError, match="Expected UTF-8 JSON lines"):
        load_traces(tmp_path / "bytes.jsonl")


def test_a_file_without_a_trace_is_no_success(tmp_path):
    with pytest.raises(TraceError, match="holds no trace"):
        load_traces(write(tmp_path, "", " "))


def test_two_traces_of_one_name_are_refused(tmp_path):
    with pytest.raises(TraceError, match=r"traces.jsonl:2: the name 'same' is taken by line 1"):
        load_traces(write(tmp_path, {**LEAST, "name": "same"}, {**LEAST, "name": "same"}))


def test_a_line_separator_inside_a_string_ends_no_line(tmp_path):
    path = write(tmp_path, json.dumps({**LEAST, "answer": "one\u2028two\x85three"}, ensure_ascii=False), LEAST)
    assert [trace.answer for trace in load_traces(path)] == ["one\u2028two\x85three", "No."]


def test_a_sample_is_seeded_and_in_file_order(tmp_path):
    traces = load_traces(write(tmp_path, *({**LEAST, "name": f"t{number:02}"} for number in range(30))))
    chosen = pick(traces, 5)
    assert chosen == pick(traces, 5)
    assert [t.name for t in chosen] == sorted(t.name for t in chosen)
    assert pick(traces, 5, seed=1) != chosen
    assert pick(traces, None) == pick(traces, 99) == traces


@given(st.text())
def test_pieces_are_the_text(text):
    assert "".join(pieces(text)) == text
    assert tokens_in(text) >= -(-len(text.encode("utf-8", "surrogatepass")) // 4)
