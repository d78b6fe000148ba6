"""``reasoning_details`` in a request: what the auditor is shown of them, and what doesn't reach the model."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from guardtrace_proxy.wire.chat_request import ChatRequest, body_for_upstream, read_request
from guardtrace_proxy.wire.request import Allowed
from tests.calls import calls_of

SECRET = "gAAAAABo" + "Zx9Kq3VbT7mLw2Rc" * 8
ENCRYPTED = {"type": "reasoning.encrypted", "data": SECRET, "id": "rs_" + "0a1b" * 13, "format": "x-v1", "index": 0}
READABLE = {"type": "reasoning.text", "text": "hm", "signature": SECRET, "format": None, "index": 1}
USER = {"role": "user", "content": "hi"}


def body(*details: Any, indent: int | None = None) -> bytes:
    said = {"role": "assistant", "content": "yes", "reasoning_details": list(details), "seed": 1.0}
    return json.dumps({"model": "m", "messages": [USER, said, USER]}, indent=indent).encode()


def read(*details: Any, keeps: bool = False) -> ChatRequest:
    return read_request(body(*details), Allowed(encrypted_reasoning=keeps))


@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize(
    ("detail", "shown"),
    [
        ({"type": "reasoning.text", "text": "hm"}, ["hm"]),
        ({"type": "reasoning.summary", "summary": "hm", "id": "rs_" + "0a1b" * 13, "index": 3}, ["hm"]),
        (READABLE, ["hm"]),
        ({"type": "reasoning.text", "text": "hm", "content": "more", "note": ["x y"]}, ["hm", "more", '["x y"]']),
        ({"type": "reasoning.text", "text": ["hm"]}, ['["hm"]']),
        ({"type": "do as I say", "id": {"a": "b"}}, ["do as I say", '{"a": "b"}']),
        ("words", ["words"]),
        (["some", "words"], ['["some", "words"]']),
        (None, []),
        # What is called encrypted and can be read is text, and so is what isn't called so.
        ({"type": "reasoning.encrypted", "data": "do as I say"}, ["do as I say"]),
        ({"type": "reasoning.encrypted", "signature": SECRET}, [SECRET]),
        ({"type": "reasoning.text", "text": "", "signature": "do as I say"}, ["do as I say"]),
    ],
)
def test_all_that_they_say_is_shown(detail: Any, shown: list[str], keeps: bool) -> None:
    request = read(detail, keeps=keeps)
    assert request.turns[1] == ("assistant", "\n".join(["yes", *shown]))
    assert body_for_upstream(body(detail), request) == body(detail)


def test_pieces_are_read_in_a_row_whatever_their_size() -> None:
    assert read(*texts("how to ", "how", " ", "to", " ma", "ke")).turns[1] == ("assistant", "yes\nhow to how to make")


def test_texts_and_summaries_are_read_apart() -> None:
    summary = {"type": "reasoning.summary", "summary": "in short"}
    assert read(READABLE, summary, READABLE).turns[1] == ("assistant", "yes\nhmhm\nin short")


def test_encrypted_parts_are_taken_out_and_nothing_else_is() -> None:
    data = body({**ENCRYPTED, "text": "more"}, READABLE, "x", ENCRYPTED, indent=2)
    request = read_request(data)
    assert request.turns[1] == ("assistant", "yes\nhm\nx")
    sent = body_for_upstream(data, request)
    assert json.loads(sent) == json.loads(body(READABLE, "x"))
    assert b'"seed":1.0' in sent
    for detail in (ENCRYPTED, {**ENCRYPTED, "type": "reasoning.text"}, {"data": SECRET}):
        assert json.loads(body_for_upstream(body(detail), read(detail))) == json.loads(body())


def test_encrypted_parts_pass_where_they_may() -> None:
    data = body({**ENCRYPTED, "text": "more"})
    request = read_request(data, Allowed(encrypted_reasoning=True))
    assert request.turns[1] == ("assistant", "yes\nmore")
    assert body_for_upstream(data, request) is data


def texts(*parts: str) -> list[dict[str, str]]:
    return [{"type": "reasoning.text", "text": part} for part in parts]


@given(st.lists(st.text("ab\n\u0100", max_size=5), max_size=12), st.text("ab\n\u0100", max_size=20))
@example(["\n"], "")
def test_all_pieces_are_shown_unless_the_thinking_says_them_in_a_row(parts: list[str], reasoning: str) -> None:
    joined = "".join(parts)
    shown = [reasoning, *([] if "".join(joined.split()) in "".join(reasoning.split()) else [joined])]
    said = {"role": "assistant", "content": "yes", "reasoning": reasoning, "reasoning_details": texts(*parts)}
    data = json.dumps({"model": "m", "messages": [USER, said, USER]}).encode()
    assert read_request(data).turns[1] == ("assistant", "\n".join(["yes", *filter(None, shown)]))


def test_the_whole_may_have_white_space_between_the_pieces() -> None:
    said = {"role": "assistant", "content": "yes", "reasoning": "one\n\ntwo", "reasoning_details": texts("one", "two")}
    data = json.dumps({"model": "m", "messages": [USER, said, USER]}).encode()
    assert read_request(data).turns[1] == ("assistant", "yes\none\n\ntwo")


def test_many_parts_take_work_in_proportion() -> None:
    few, many = (body(*texts(*(f"{at} bottles of beer" for at in range(count)))) for count in (500, 4000))
    assert calls_of(lambda: read_request(many)) < 12 * calls_of(lambda: read_request(few))
