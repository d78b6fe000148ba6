"""Other URLs in the place of a request's images; everything else as it is written."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from guardtrace_proxy.wire.chat_images import replace_images
from guardtrace_proxy.wire.chat_request import read_request
from guardtrace_proxy.wire.request import RequestError


def test_only_the_urls_change() -> None:
    body = b"""
    {"model": "m", "temperature" : 1.0, "seed": 123456789012345678901234567890, "top_p": 1E-1, "big": 1e400,
     "messages": [
       {"role": "system", "content": "no \\u0069mage, but \\ud83d\\ude00 and {\\"type\\": \\"image_url\\"}"},
       {"role": "user", "name": "a", "content": [
          {"type": "text", "text": "caf\\u00e9"},
          {"type": "image_url", "image_url": {"detail": "low", "url": "https://a.example/x.png"}, "x": [1,  2]},
          {"im\\u0061ge_url": "https://a.example/y.png", "type": "image\\u005furl"}]},
       {"role": "assistant", "content": null, "tool_calls": [{"image_url": {"url": "stays"}}]},
       {"role": "user", "content":  [ {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}} ] }
     ], "image_url": {"url": "stays"}}
    """
    assert replace_images(body, ["data:1", "data:2", "data:3"]).decode() == (
        '{"model":"m","temperature":1.0,"seed":123456789012345678901234567890,"top_p":1E-1,"big":1e400,"messages":['
        '{"role":"system","content":"no \\u0069mage, but \\ud83d\\ude00 and {\\"type\\": \\"image_url\\"}"},'
        '{"role":"user","name":"a","content":['
        '{"type":"text","text":"caf\\u00e9"},'
        '{"type":"image_url","image_url":{"detail":"low","url":"data:1"},"x":[1,  2]},'
        '{"image_url":"data:2","type":"image\\u005furl"}]},'
        '{"role":"assistant","content":null,"tool_calls":[{"image_url": {"url": "stays"}}]},'
        '{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:3"}}]}],'
        '"image_url":{"url": "stays"}}'
    )


@pytest.mark.parametrize("urls", [[], ["data:1", "data:2"]])
def test_as_many_urls_as_images_are_needed(urls: list[str]) -> None:
    part = {"type": "image_url", "image_url": {"url": "https://a.example/x.png"}}
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": [part]}]}).encode()
    with pytest.raises((ValueError, StopIteration)):
        replace_images(body, urls)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("abß\u2028", max_size=4), inner, max_size=2),
    max_leaves=4,
)
text_part = st.fixed_dictionaries({"type": st.just("text"), "text": st.text(st.characters(codec="utf-8"))})
url = st.text('abc:/"\\é', max_size=8)
image_part = st.fixed_dictionaries(
    {"type": st.just("image_url"), "image_url": st.fixed_dictionaries({"url": url}, optional={"detail": anything})},
    optional={"x": anything},
)
bare_part = st.fixed_dictionaries({"type": st.just("image_url"), "image_url": url})
content = st.text(st.characters(codec="utf-8"), max_size=9) | st.lists(text_part | image_part | bare_part, max_size=4)
message = st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "tool"]), "content": content})
request = st.fixed_dictionaries(
    {"model": st.just("m"), "messages": st.lists(message, min_size=1, max_size=4)}, optional={"metadata": anything}
)


@given(request, st.booleans(), st.sampled_from([None, 1]))
def test_the_request_reads_the_same_but_for_its_images(
    asked: dict[str, Any], escaped: bool, indent: int | None
) -> None:
    body = json.dumps(asked, ensure_ascii=escaped, indent=indent).encode()
    try:
        before = read_request(body)
    except RequestError:
        assume(False)  # infinity, halves of characters
    urls = [f"data:{index}" for index in range(len(before.images))]
    replaced = replace_images(body, urls)
    after = read_request(replaced)
    assert [url for url, _ in after.images] == urls
    assert [field for _, field in after.images] == [field for _, field in before.images]
    assert (after.turns, after.model, after.prefill) == (before.turns, before.model, before.prefill)
    back = replace_images(replaced, [url for url, _ in before.images])
    assert json.loads(back) == json.loads(body)
