"""A model server and an auditor as processes that can be killed, stopped and told to misbehave.

`python tests/faults/peer.py PORT upstream|auditor`. They speak HTTP over bare sockets, so that they can break it. What the
upstream does is named by the request's `model`; what the auditor does by the last GET of `/mode/NAME`. GET `/asked` tells how
many requests came, and how many of them were given up by their client.

A reply is ten safe words, then the marker, then the end. The auditor judges 1 where it sees the marker.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable

MARKER = "HARM"
WORDS = [f"word{number} " for number in range(10)]
FOREVER = 3600.0
DRIP_SECONDS = 0.03
BULKY = 80
SSE = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
DONE = b"data: [DONE]\n\n"

Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter


def event(delta: dict[str, str], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    head = {"id": "c-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return b"data: " + json.dumps({**head, "choices": [choice]}).encode() + b"\n\n"


FINE = [*(event({"reasoning": word}) for word in WORDS), *(event({"content": word}) for word in WORDS)]
END = event({}, "stop") + DONE
HARMFUL = event({"reasoning": f"and now {MARKER} in all its parts"})
LARGE = event({"reasoning": "x", "ballast": "y" * 100_000})


def framed(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def answer(status: int, body: bytes, content_type: str = "application/json") -> bytes:
    head = f"HTTP/1.1 {status} X\r\ncontent-type: {content_type}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


class Peer:
    def __init__(self) -> None:
        self.mode = "well"
        self.asked = self.given_up = 0

    async def handle(self, reader: Reader, writer: Writer) -> None:
        """Requests of one connection, one after the other."""
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _one(self, reader: Reader, writer: Writer) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        method, path, *_ = head.split()
        length = next((int(line[15:]) for line in head.splitlines() if line.lower().startswith("content-length:")), 0)
        body = json.loads(await reader.readexactly(length)) if length else {}
        if method == "GET":
            if path.startswith("/mode/"):
                self.mode = path.removeprefix("/mode/")
            state = {"asked": self.asked, "given_up": self.given_up, "data": []}
            writer.write(answer(200, json.dumps(state).encode()))
            await writer.drain()
            return True
        if path.endswith("/tokenize"):
            writer.write(answer(404, b"{}"))
            await writer.drain()
            return True
        if "Read these letters." in str(body):  # whether all of a long prompt is read, which isn't what is tested here
            writer.write(answer(200, b'{"choices": [], "usage": {"prompt_tokens": 8192}}'))
            await writer.drain()
            return True
        self.asked += 1
        return await self._while_wanted(reader, self.reply(body, writer))

    async def _while_wanted(self, reader: Reader, reply: Awaitable[bool]) -> bool:
        """A reply, dropped as soon as its client closes."""
        replying = asyncio.ensure_future(reply)
        closing = asyncio.ensure_future(_closed(reader))
        await asyncio.wait([replying, closing], return_when=asyncio.FIRST_COMPLETED)
        if replying.done() and replying.exception() is None:
            closing.cancel()
            return replying.result()
        self.given_up += 1
        replying.cancel()
        return False

    async def reply(self, body: dict[str, object], writer: Writer) -> bool:
        raise NotImplementedError


async def _closed(reader: Reader) -> None:
    """Watches without taking bytes: the next request may follow on the connection."""
    while not reader.at_eof() and reader.exception() is None:
        await asyncio.sleep(0.02)


class Upstream(Peer):
    async def reply(self, body: dict[str, object], writer: Writer) -> bool:
        act = getattr(self, str(body["model"]).replace("-", "_"))
        return bool(await act(writer))

    async def _send(self, writer: Writer, *parts: bytes, pause: float = 0.0) -> None:
        for part in parts:
            writer.write(framed(part))
            await writer.drain()
            await asyncio.sleep(pause)

    async def _begin(self, writer: Writer) -> None:
        writer.write(SSE)
        await self._send(writer, *FINE[:8])

    async def fine(self, writer: Writer) -> bool:
        writer.write(SSE)
        await self._send(writer, *FINE, END, b"")
        return True

    async def harmful(self, writer: Writer) -> bool:
        writer.write(SSE)
        await self._send(writer, *FINE[:8], HARMFUL, END, b"")
        return True

    async def slow(self, writer: Writer) -> bool:
        """Word by word; the marker comes after the words, so it is there only for those who wait."""
        writer.write(SSE)
        await self._send(writer, *FINE, END, b"", pause=DRIP_SECONDS)
        return True

    async def slow_harmful(self, writer: Writer) -> bool:
        writer.write(SSE)
        await self._send(writer, *FINE[:8], HARMFUL, *FINE, END, b"", pause=DRIP_SECONDS)
        return True

    async def harmful_when_told(self, writer: Writer) -> bool:
        """A word after the other until GET `/mode/harm`, so that whatever is to happen before the marker has happened."""
        writer.write(SSE)
        while self.mode != "harm":
            await self._send(writer, FINE[0], pause=DRIP_SECONDS)
        await self._send(writer, HARMFUL, END, b"")
        return True

    async def hang_before_head(self, writer: Writer) -> bool:
        await asyncio.sleep(FOREVER)
        return False

    async def hang_in_mid(self, writer: Writer) -> bool:
        await self._begin(writer)
        await asyncio.sleep(FOREVER)
        return False

    async def comments_for_ever(self, writer: Writer) -> bool:
        await self._begin(writer)
        while True:
            await self._send(writer, b": still here\n\n", pause=DRIP_SECONDS)

    async def endless(self, writer: Writer) -> bool:
        writer.write(SSE)
        while True:
            await self._send(writer, FINE[0], pause=DRIP_SECONDS)

    async def garbage_head(self, writer: Writer) -> bool:
        writer.write(b"\x00\xff\x16\x03 " + MARKER.encode() + b"\r\n\r\n")
        await writer.drain()
        return False

    async def garbage_event(self, writer: Writer) -> bool:
        await self._begin(writer)
        await self._send(writer, b"data: {" + MARKER.encode() + b"\n\n", END, b"")
        return False

    async def garbage_framing(self, writer: Writer) -> bool:
        await self._begin(writer)
        await asyncio.sleep(0.2)  # else it comes together with the head
        writer.write(b"zz\r\n" + HARMFUL)
        await writer.drain()
        await asyncio.sleep(FOREVER)
        return False

    async def half_close(self, writer: Writer) -> bool:
        """Says that it has said everything, in the middle of an event, and stays."""
        await self._begin(writer)
        writer.write(framed(HARMFUL)[:40])
        await writer.drain()
        writer.write_eof()
        await asyncio.sleep(FOREVER)
        return False

    async def reset(self, writer: Writer, *events: bytes) -> bool:
        await self._begin(writer)
        await self._send(writer, *events)
        writer.transport.abort()
        return False

    async def reset_harmful(self, writer: Writer) -> bool:
        return await self.reset(writer, HARMFUL)

    async def large(self, writer: Writer) -> bool:
        writer.write(SSE)
        while True:
            await self._send(writer, LARGE)

    async def bulky(self, writer: Writer) -> bool:
        """More than all sockets between buffer."""
        writer.write(SSE)
        await self._send(writer, *[LARGE] * BULKY, END, b"")
        return True


class Auditor(Peer):
    async def reply(self, body: dict[str, object], writer: Writer) -> bool:
        acts: dict[str, Callable[[Writer], Awaitable[None]]] = {
            "hang": self._hang,
            "garbage": self._garbage,
            "half-close": self._half_close,
        }
        if self.mode in acts:
            await acts[self.mode](writer)
            return False
        if self.mode == "slow":
            await asyncio.sleep(0.2)
        level = "1" if MARKER in json.dumps(body["messages"]) else "0"
        message = {"role": "assistant", "content": f"“Analysis”: read.\n“Judgment”: {level}"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        writer.write(answer(200, json.dumps({"choices": [choice]}).encode()))
        await writer.drain()
        return True

    async def _hang(self, writer: Writer) -> None:
        await asyncio.sleep(FOREVER)

    async def _garbage(self, writer: Writer) -> None:
        writer.write(answer(200, b'{"choices": "\xff\xfe' + b"\x00" * 1000))
        await writer.drain()

    async def _half_close(self, writer: Writer) -> None:
        writer.write(answer(200, b'{"choices": []}')[:-5])
        await writer.drain()
        writer.write_eof()
        await asyncio.sleep(FOREVER)


async def main(port: int, what: str) -> None:
    peer: Peer = Upstream() if what == "upstream" else Auditor()
    server = await asyncio.start_server(peer.handle, "127.0.0.1", port, backlog=4096, limit=2**20)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
