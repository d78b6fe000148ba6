"""What is an image or speech, and what only looks like one."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any

import pytest

from guardtrace_proxy.wire.events import EventKind
from guardtrace_proxy.wire.media import Media, refuse_media
from tests.wire.message_events import SIGNATURE
from tests.wire.replies import message, response

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
OPAQUE = "gAAAAABn" + "zX3vQm8Lr2Kp7TbY" * 6
FILES = {
    "png": bytes.fromhex("89504e470d0a1a0a0000000d49484452000000010000000108060000"),
    "jpeg": bytes.fromhex("ffd8ffe000104a46494600010100000100010000ffdb00430008060607"),
    "gif": b"GIF89a\1\0\1\0\x80\0\0\0\0\0\xff\xff\xff!\xf9\4\1\0\0\0\0",
    "webp": b"RIFF\x24\0\0\0WEBPVP8 \x18\0\0\0\x30\1\0\x9d\1\x2a\1\0\1\0",
    "ogg": b"OggS\0\2\0\0\0\0\0\0\0\0\x2a\0\0\0\0\0\0\0\x7b\x1c\1\x1e\1vorbis",
    "mp4": b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41",
    "webm": bytes.fromhex("1a45dfa39f4286810142f7810142f2810442f381084282847765626d"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("prefix", ["", "\n", "data:application/octet-stream;base64,", "data:;base64, "])
def test_a_file_is_known_by_what_it_begins_with(name: str, prefix: str) -> None:
    data = b64encode(FILES[name]).decode()
    for written in (data, data.replace("+", "-").replace("/", "_")):
        for value in (prefix + written, [prefix + written], {"vendor": {"blob": prefix + written}}):
            with pytest.raises(Media):
                refuse_media(("vendor",), value)


@pytest.mark.parametrize(
    ("path", "value", "kind"),
    [
        (("result",), "SEEN", "image_generation_call"),
        (("partial_image_b64",), "SEEN", "response.image_generation_call.partial_image"),
        (("delta",), "SEEN", "response.output_audio.delta"),
        (("data",), "SEEN", "output_audio"),
        (("data",), "SEEN", "image"),
        (("image_url",), " DATA:image/png;base64,SEEN", "output_image"),
        (("images",), [{"b64_json": "SEEN"}], None),
        (("source",), {"type": "base64", "media_type": "application/pdf", "data": "SEEN"}, "document"),
        (("inlineData",), {"mimeType": "audio/L16;rate=24000", "data": "SEEN"}, None),
        (("audio",), {"data": "SEEN"}, None),
        (("image",), {"data": [137, 80, 78, 71]}, None),
        (("imageBase64",), "SEEN", None),
        (("data",), "SEEN", "IMAGE"),
        (("audio", 0, "deep"), {"er": {"data": "SEEN"}}, None),
    ],
)
def test_a_field_is_known_by_its_name_and_its_type(path: tuple[str | int, ...], value: Any, kind: Any) -> None:
    with pytest.raises(Media):
        refuse_media(path, value, kind)


@pytest.mark.parametrize(
    ("path", "value", "kind"),
    [
        (("result",), None, "image_generation_call"),
        (("result",), "", "image_generation_call"),
        (("result",), "found it", "mcp_call"),
        (("revised_prompt",), "a cat", "image_generation_call"),
        (("delta",), "well then", "response.output_audio_transcript.delta"),
        (("audio",), {"id": "audio_1", "transcript": "well then", "expires_at": 1}, None),
        (("data",), OPAQUE, "vendor.block"),
        (("encrypted_content",), OPAQUE, "web_search_result"),
        (("signature",), SIGNATURE, "vendor"),
        (("source",), {"type": "text", "media_type": "text/plain", "data": "well then"}, "document"),
        (("url",), "https://example.com/a.png", "image"),
        (("note",), "data: image of a cat", None),
        (("vector",), {"data": [1, 2, 3]}, None),
        (("image",), {"size": [112, 112], "data": []}, None),
        (("note",), "imagine /9j/ and so on", None),
    ],
)
def test_what_is_text_or_opaque_stays(path: tuple[str | int, ...], value: Any, kind: Any) -> None:
    refuse_media(path, value, kind)


def test_replies_with_what_nobody_can_read_are_still_read() -> None:
    found = {"type": "web_search_result", "url": "https://a.example", "encrypted_content": OPAQUE}
    blocks = [
        {"type": "redacted_thinking", "data": SIGNATURE},
        {"type": "thinking", "thinking": "well", "signature": SIGNATURE},
        {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": [found]},
    ]
    content = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": blocks}
    assert message().completion(_json(content)).kind is EventKind.COMPLETION
    items = [
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": OPAQUE},
        {"type": "image_generation_call", "id": "ig_1", "status": "in_progress", "result": None},
    ]
    whole = {"id": "resp_1", "object": "response", "status": "completed", "output": items}
    assert response().completion(_json(whole)).kind is EventKind.COMPLETION


def test_what_repeats_the_requests_image_is_not_the_replys() -> None:
    url = f"data:image/png;base64,{PNG}"
    whole = {"id": "resp_1", "object": "response", "output": [], "prompt": {"variables": {"a": {"image_url": url}}}}
    assert response(asked=[url]).completion(_json(whole)).kind is EventKind.COMPLETION
    assert response().completion(_json(whole)).kind is EventKind.MALFORMED


def _json(content: Any) -> bytes:
    return json.dumps(content).encode()
