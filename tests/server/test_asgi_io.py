"""Bodies leave in pieces, so that a client's time runs for little."""

from __future__ import annotations

import anyio
import pytest

from guardtrace_proxy.server.asgi_io import MAX_PIECE_BYTES, Message, respond, send_body
from guardtrace_proxy.server.event_stream import EventStream
from guardtrace_proxy.wire.chat import ChatStream
from guardtrace_proxy.wire.tags import ThinkingStyle

WRITER = ChatStream(ThinkingStyle("field"), include_usage=False, max_event_bytes=100)
SIZES = {0: 1, 1: 1, MAX_PIECE_BYTES: 1, MAX_PIECE_BYTES + 1: 2, 3 * MAX_PIECE_BYTES: 3, 3 * MAX_PIECE_BYTES + 5: 4}


class Sent(list[Message]):
    async def __call__(self, message: Message) -> None:
        self.append(message)

    def holds(self, data: bytes, pieces: int, more: bool) -> None:
        assert b"".join(message["body"] for message in self) == data
        assert max(len(message["body"]) for message in self) <= MAX_PIECE_BYTES
        assert [message.get("more_body", False) for message in self] == [*[True] * (pieces - 1), more]


@pytest.mark.parametrize("more", [False, True])
@pytest.mark.parametrize(("size", "pieces"), SIZES.items())
def test_a_body_leaves_in_pieces(size, pieces, more):
    data, sent, written = bytes(range(256)) * (size // 256) + b"z" * (size % 256), Sent(), Sent()
    anyio.run(send_body, sent, data, more)
    sent.holds(data, pieces, more)

    async def write() -> None:
        await EventStream(written, WRITER, [], 0).write(data, more)

    anyio.run(write)
    written.holds(data, pieces, more)


def test_a_whole_response_leaves_in_pieces_and_says_its_length():
    sent, data = Sent(), b"x" * (2 * MAX_PIECE_BYTES + 1)
    anyio.run(respond, sent, 200, data, [])
    head = sent.pop(0)
    assert (b"content-length", str(len(data)).encode()) in head["headers"]
    sent.holds(data, 3, False)
