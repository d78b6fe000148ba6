"""docs/chat-completions.md names every field of the official client's types, and what the code does with each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from openai.types.chat import ChatCompletion, ChatCompletionChunk, completion_create_params
from openai.types.chat.chat_completion_content_part_param import ChatCompletionContentPartParam
from openai.types.chat.chat_completion_content_part_refusal_param import ChatCompletionContentPartRefusalParam
from openai.types.chat.chat_completion_message_param import ChatCompletionMessageParam
from pydantic import BaseModel

from guardtrace_proxy.wire.chat_fields import FORCED, KNOWN, PASSED, UNFOLLOWED
from guardtrace_proxy.wire.chat_request import MEDIA, ROLES

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "chat-completions.md").read_text("utf-8")


def rows(heading: str, text: str = TEXT) -> dict[str, str]:
    """The fields of a section's table with their fates; a field that stands twice fails."""
    section = text.partition(f"\n{heading}\n")[2].partition("\n#")[0]
    found: dict[str, str] = {}
    for line in section.splitlines():
        if line.startswith("| `"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            for name in re.findall(r"`([^`]+)`", cells[0]):
                assert name not in found, f"{name} stands twice"
                found[name] = cells[1]
    return found


def keys_of(union: Any) -> set[str]:
    """The keys of all TypedDicts of a union."""
    return {key for each in get_args(union) for key in get_type_hints(each)}


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Paths of all fields of a model that hold no model themselves."""
    for name, field in model.model_fields.items():
        inner, path = list(models_in(field.annotation)), f"{prefix}{name}"
        if not inner:
            yield path
        for each in inner:
            yield from leaves(each, f"{path}[]." if "List" in str(field.annotation) else f"{path}.")


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) is Annotated:
        yield from models_in(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, list) or get_args(annotation):
        for each in get_args(annotation):
            yield from models_in(each)


def test_the_request_table_names_every_field_of_the_client_with_its_fate() -> None:
    table = rows("## The request")
    official = get_type_hints(completion_create_params.CompletionCreateParamsStreaming)
    assert len(official) > 30
    assert official.keys() <= table.keys()
    assert table.keys() == KNOWN
    forced = {path.partition(".")[0] for path in FORCED}
    for field, fate in table.items():
        groups = {"passed": field in PASSED, "refused": field in UNFOLLOWED, "forced": field in forced}
        assert fate == next((name for name, belongs in groups.items() if belongs), "read"), field


def test_the_table_of_messages_names_every_field_of_the_client() -> None:
    table = rows("### Messages")
    parts = keys_of(ChatCompletionContentPartParam) | get_type_hints(ChatCompletionContentPartRefusalParam).keys()
    messages = keys_of(ChatCompletionMessageParam)
    assert {"role", "content", "tool_calls"} < messages
    named = {f"messages[].{key}" for key in messages} | {f"messages[].content[].{key}" for key in parts}
    assert named == table.keys()
    for name in ROLES | MEDIA:
        assert f"`{name}`" in TEXT


def test_the_reply_table_names_every_field_of_the_client() -> None:
    table = rows("## The reply")
    assert set(table.values()) == {"passed", "audited", "held"}
    found = [*leaves(ChatCompletion), *leaves(ChatCompletionChunk)]
    assert len(set(found)) > 50
    # Only whole objects that are audited may be named as one.
    wide = tuple(name.removesuffix("*") for name, fate in table.items() if name.endswith(".*") and fate == "audited")
    missing = {path for path in found if path not in table and not path.startswith(wide)}
    assert missing == set()
