"""docs/completions.md names every field of the official client's, and says of each what the code does."""

from __future__ import annotations

from typing import get_type_hints

from openai.types import Completion, completion_create_params

from guardtrace_proxy.wire.completion_request import KNOWN, PASSED, UNFOLLOWED
from tests.docs.test_chat_fields import DOCS, leaves, rows

PAGE = (DOCS / "completions.md").read_text("utf-8")


def test_the_request_table_names_every_field_of_the_client_with_its_fate() -> None:
    table = rows("## The request", PAGE)
    official = get_type_hints(completion_create_params.CompletionCreateParamsStreaming)
    assert len(official) > 15
    assert official.keys() <= table.keys() == KNOWN
    for field, fate in table.items():
        assert fate == ("passed" if field in PASSED else "refused" if field in UNFOLLOWED else "read"), field


def test_the_reply_table_names_every_field_of_the_client() -> None:
    table = rows("## The reply", PAGE)
    assert set(table.values()) == {"passed", "audited", "held"}
    found = set(leaves(Completion))
    assert len(found) > 15
    assert found - table.keys() == set()
