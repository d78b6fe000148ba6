"""docs/responses.md names every field of the official client's, and says of each what the code does."""

from __future__ import annotations

import re
from typing import get_args, get_type_hints

from openai.types.responses import (
    Response,
    ResponseCustomToolCall,
    ResponseFunctionToolCall,
    ResponseOutputMessage,
    ResponseOutputRefusal,
    ResponseOutputText,
    ResponseReasoningItem,
    response_create_params,
)

from guardtrace_proxy.wire.responses_fields import FORCED, KNOWN, PASSED, UNFOLLOWED
from guardtrace_proxy.wire.responses_places import DELTAS, DONES, ECHOED, LIFECYCLE
from guardtrace_proxy.wire.responses_request import ITEMS
from tests.docs.test_chat_fields import DOCS, rows

PAGE = (DOCS / "responses.md").read_text("utf-8")


def test_the_request_table_names_every_field_of_the_client_with_its_fate() -> None:
    table = rows("## The request", PAGE)
    official = get_type_hints(response_create_params.ResponseCreateParamsStreaming)
    assert len(official) > 30
    assert official.keys() <= table.keys()
    assert table.keys() == KNOWN
    for field, fate in table.items():
        groups = {"passed": field in PASSED, "refused": field in UNFOLLOWED, "forced": field in FORCED}
        assert fate == next((name for name, belongs in groups.items() if belongs), "read"), field


def test_the_table_of_items_names_those_that_are_read() -> None:
    table = rows("### Items", PAGE)
    assert {name for name, fate in table.items() if fate == "read"} == set(ITEMS)


def test_the_reply_tables_name_every_field_of_the_client() -> None:
    table = rows("## The reply", PAGE)
    assert Response.model_fields.keys() - table.keys() == set()
    assert {field for field in ECHOED if field in Response.model_fields} <= {
        field for field, fate in table.items() if fate == "passed"
    }
    named = {name.rpartition(".")[2] for name in rows("### Its items and parts", PAGE)}
    rare = {"async_", "caller", "namespace"}
    for model in (
        ResponseOutputMessage,
        ResponseReasoningItem,
        ResponseFunctionToolCall,
        ResponseCustomToolCall,
        ResponseOutputText,
        ResponseOutputRefusal,
    ):
        assert model.model_fields.keys() - named - rare - {"content", "summary"} == set(), model
    assert get_args(ResponseOutputText.model_fields["type"].annotation) == ("output_text",)


def test_the_table_of_events_names_those_that_are_known() -> None:
    section = PAGE.partition("## Events")[2]
    named = set(re.findall(r"`(response\.[a-z_.]+)`", section))
    assert {*DELTAS, *DONES, *LIFECYCLE} - {"response.cancelled"} <= named
