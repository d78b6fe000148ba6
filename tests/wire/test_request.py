"""What readers of requests share: how many values a body may hold, and how deep they may stand."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from guardtrace_proxy.wire import request
from guardtrace_proxy.wire.request import MAX_DEPTH, MAX_VALUES, TOO_DEEP, RequestError, read_object

TEXT = st.text('a,[{"\\\\:é', max_size=6)
VALUES = st.recursive(
    TEXT | st.none() | st.integers(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


def signs(value: Any) -> int:
    """Commas and opening brackets of a value's JSON, outside of its strings."""
    if not isinstance(value, (list, dict)):
        return 0
    inner = value.values() if isinstance(value, dict) else value
    return max(1, len(value)) + sum(map(signs, inner))


@pytest.mark.parametrize("unit", [b"{}", b"[]", b"0", b'""', b'{"":0}', b'{"a":"\\\\"}', b'"\\u0022"'])
def test_very_many_values_are_refused_before_any_is_read(unit: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request.json, "loads", None)
    body = b'{"metadata":[' + b",".join([unit] * (MAX_VALUES + 1)) + b"]}"
    with pytest.raises(RequestError, match="more than 524,288 values") as refused:
        read_object(body)
    assert refused.value.param is None


def test_text_may_hold_as_many_signs_as_it_likes() -> None:
    content = '{"a, b": [c, d], "e\\\\": "\\"}, ' * MAX_VALUES
    assert read_object(json.dumps({"messages": [content, content]}).encode())["messages"][1] == content


@given(st.dictionaries(TEXT, VALUES, max_size=4), st.integers(0, 30))
@example({"\\\\": ["\\\\", '"', '\\\\"', ",,,"]}, 5)
@example({"\\\\": ["\\\\", '"', '\\\\"', ",,,"]}, 4)
def test_so_many_values_pass_and_no_more(value: dict[str, Any], most: int) -> None:
    body = json.dumps(value, ensure_ascii=False).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(request, "MAX_VALUES", most)
        if signs(value) <= most:
            assert read_object(body) == value
        else:
            with pytest.raises(RequestError, match=f"more than {most} values"):
                read_object(body)


@pytest.mark.parametrize(("inner", "levels"), [("0", 1), ("{}", 1), ('[""]', 2), ('{"":[]}', 2), ('{"a":{"b":0}}', 3)])
def test_every_kind_of_value_has_a_depth(inner: str, levels: int) -> None:
    lists = MAX_DEPTH - 1 - levels
    deepest, too_deep = (f'{{"":{"[" * each}{inner}{"]" * each}}}'.encode() for each in (lists, lists + 1))
    assert read_object(deepest) == json.loads(deepest)
    with pytest.raises(RequestError, match=TOO_DEEP):
        read_object(too_deep)
