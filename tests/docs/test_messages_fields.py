"""docs/messages.md names every field of the official client's, and says of each what the code and the proxy do."""

from __future__ import annotations

import json
import re
from typing import Any, get_type_hints

import pytest
from anthropic.types import (
    Message,
    RedactedThinkingBlock,
    TextBlock,
    ThinkingBlock,
    ToolUseBlock,
    message_create_params,
)

from guardtrace_proxy.server.forwarded import BETAS
from guardtrace_proxy.wire.messages import OF_BLOCKS
from guardtrace_proxy.wire.messages_errors import messages_error
from guardtrace_proxy.wire.messages_fields import FORCED, KNOWN, PASSED, UNFOLLOWED
from guardtrace_proxy.wire.messages_request import BLOCKS
from tests.docs.test_chat_fields import DOCS, rows
from tests.server.running import proxy
from tests.server.scripted import paced
from tests.server.test_messages import ASK, VERSION
from tests.wire.message_events import reply

PAGE = (DOCS / "messages.md").read_text("utf-8")
FRAMES = dict(re.findall(r"<!-- frames: (\w+) -->\n```text\n(.*?)```", PAGE, re.DOTALL))
CASES: dict[str, dict[str, Any]] = {"cut": {}, "refusal": {"cut_shape": "refusal"}, "error": {"cut_shape": "error"}}


def test_the_request_table_names_every_field_of_the_client_with_its_fate() -> None:
    table = rows("## The request", PAGE)
    official = get_type_hints(message_create_params.MessageCreateParamsStreaming)
    assert len(official) > 15
    assert official.keys() <= table.keys()
    assert table.keys() == KNOWN
    for field, fate in table.items():
        groups = {"passed": field in PASSED, "refused": field in UNFOLLOWED, "forced": field in FORCED}
        assert fate == next((name for name, belongs in groups.items() if belongs), "read"), field


def test_the_table_of_blocks_names_those_that_are_read() -> None:
    assert {name for name, fate in rows("### Blocks", PAGE).items() if fate == "read"} == set(BLOCKS)


def test_the_reply_tables_name_every_field_of_the_client() -> None:
    assert Message.model_fields.keys() <= rows("## The reply", PAGE).keys()
    named = rows("### Its blocks", PAGE).keys()
    for model in (TextBlock, ThinkingBlock, RedactedThinkingBlock, ToolUseBlock):
        kind = model.model_fields["type"].annotation.__args__[0]
        assert {f"{kind}.{name}" for name in model.model_fields if name != "type"} <= named


def test_the_table_of_events_names_those_that_are_known() -> None:
    section = PAGE.partition("## Events")[2]
    named = set(re.findall(r"`([a-z_]+)`", section.partition("| all others")[0]))
    assert {*OF_BLOCKS, "message_start", "message_delta", "message_stop", "ping", "error"} <= named


def test_the_table_of_errors_says_what_is_sent() -> None:
    table = re.findall(r"^\| (\d+) \| `(\w+)` \| ([\d, ]+) \|$", PAGE, re.MULTILINE)
    shown = {int(each): (int(status), kind) for status, kind, ours in table for each in ours.split(", ")}
    before = (DOCS / "errors.md").read_text("utf-8").partition("## Before the reply")[2].partition("\n## ")[0]
    rows_of_ours = re.findall(r"^\| ([\d, ]+) \|", before, re.MULTILINE)
    # 431 is said before a route is known.
    assert shown.keys() == {int(each) for row in rows_of_ours for each in row.split(", ")} - {431}
    for ours, (status, kind) in shown.items():
        sent, body = messages_error(ours, {"message": "m"}, "ID")
        assert (sent, json.loads(body)["error"]["type"]) == (status, kind)


def test_the_betas_that_pass_are_named() -> None:
    named = re.findall(r"`([a-z0-9-]+)`", PAGE.partition("Of `anthropic-beta`")[2].partition("Others")[0])
    assert all(BETAS.fullmatch(f"{name}-2025-05-14") for name in named)
    assert len(named) == BETAS.pattern.count("|") + 1


@pytest.mark.parametrize("name", CASES)
def test_the_proxy_sends_the_frames_of_the_page(name: str) -> None:
    assert FRAMES.keys() == CASES.keys()
    leak = "Two and two are easily added so we get four. Now the HARM is spelt out here."
    with proxy(paced(reply(leak, "No.").frames[:-1]), policy=CASES[name]) as running:
        answer = running.raw({**ASK, "stream": True}, "/messages", headers=VERSION)
    sent = answer.text.replace(f'"{answer.headers["request-id"]}"', '"ID"')
    assert FRAMES[name] in re.sub(r'"output_tokens":\d+},"guard', '"output_tokens":N},"guard', sent)
