"""Model servers that follow a script, over real sockets, byte for byte."""

from __future__ import annotations

import json
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.auditor.trials import reply_to_trial

HEAD = b"HTTP/1.1 200 OK\r\nConnection: close\r\n"
SSE_HEAD = HEAD + b"Content-Type: text/event-stream\r\n\r\n"
CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
DONE = b"data: [DONE]\n\n"


def in_chunks(*parts: bytes) -> list[bytes]:
    """The parts as a body in HTTP's chunks, its end included."""
    return [b"%x\r\n%b\r\n" % (len(part), part) for part in parts] + [b"0\r\n\r\n"]


def chunk(delta: dict[str, Any], finish: str | None = None, index: int = 0, **more: Any) -> bytes:
    """One event in vLLM's manner, with fields that no schema of ours knows."""
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish, "token_ids": None}
    head = {"id": "chatcmpl-7", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": "thinker"}
    return b"data: " + json.dumps({**head, "choices": [choice], **more}).encode() + b"\n\n"


def paced(frames: Sequence[bytes]) -> Script:
    """Event by event, so that audits can't take all of them at once; it never comes to its end."""

    def script(_: Any) -> Iterator[bytes]:
        yield SSE_HEAD
        for each in frames:
            yield each
            time.sleep(0.02)
        time.sleep(20)

    return script


def stream(thinking: str, answer: str) -> list[bytes]:
    """A reply word by word."""
    frames = [chunk({"role": "assistant", "content": ""})]
    frames += [chunk({"reasoning": word + " "}) for word in thinking.split()]
    frames += [chunk({"content": word + " "}) for word in answer.split()]
    return [*frames, chunk({}, "stop"), DONE]


def completion(thinking: str | None, answer: str, **more: Any) -> bytes:
    """A whole reply with its HTTP head."""
    message: dict[str, Any] = {"role": "assistant", "content": answer}
    if thinking is not None:
        message["reasoning"] = thinking
    body = {
        "id": "chatcmpl-7",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "thinker",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 9, "total_tokens": 12},
        **more,
    }
    return http(200, json.dumps(body))


def http(status: int, body: str, content_type: str = "application/json") -> bytes:
    """A reply of known length."""
    data = body.encode()
    head = f"HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Type: {content_type}\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


@dataclass
class Server:
    """``requests`` are (path, headers, body); ``left`` is set when a client closed before the script's end.

    Nobody but vLLM has ``/tokenize``, so that is answered with 404 and not counted among the requests. Nor is the trial
    with a long prompt, which is answered as by a server that reads all of it.
    A connection is closed after its reply unless the script's first bytes say ``Connection: keep-alive``.
    """

    url: str = ""
    connections: int = 0
    requests: list[tuple[str, dict[str, str], dict[str, Any]]] = field(default_factory=list)
    left: threading.Event = field(default_factory=threading.Event)

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [body for _, _, body in self.requests]


Script = Callable[[dict[str, Any]], Iterable[bytes]]


@contextmanager
def model_server(script: Script, tls: ssl.SSLContext | None = None, *, answers_trials: bool = True) -> Iterator[Server]:
    """Serve ``script``: from a request's body to the bytes of the reply, head and all."""
    server = Server()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            server.connections += 1
            while self.answer():
                pass

        def answer(self) -> bool:
            line = self.rfile.readline().decode()
            if not line:
                return False
            headers = {}
            while (header := self.rfile.readline().decode().strip()) != "":
                name, _, value = header.partition(":")
                headers[name.lower()] = value.strip()
            body = self.rfile.read(int(headers.get("content-length", 0)))
            if line.split()[1] == "/tokenize":
                self.wfile.write(http(404, "{}"))
                return False
            content = json.loads(body) if body else {}
            if answers_trials and (trial := reply_to_trial(content)) is not None:
                self.wfile.write(http(200, json.dumps(trial)))
                return False
            server.requests.append((line.split()[1], headers, content))
            stays = None
            try:
                for data in script(content):
                    stays = b"Connection: keep-alive" in data if stays is None else stays
                    self.wfile.write(data)
            except OSError:
                server.left.set()
                return False
            return bool(stays)

    class Threaded(socketserver.ThreadingTCPServer):
        daemon_threads = True
        allow_reuse_address = True
        request_queue_size = 64

        def get_request(self) -> tuple[socket.socket, object]:
            connection, peer = super().get_request()
            return (tls.wrap_socket(connection, server_side=True) if tls else connection), peer

    with Threaded(("127.0.0.1", 0), Handler) as tcp:
        server.url = f"http{'s' if tls else ''}://127.0.0.1:{tcp.server_address[1]}/v1"
        threading.Thread(target=tcp.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield server
        finally:
            tcp.shutdown()


def judging(level_of: Callable[[str], str]) -> Script:
    """An auditor that answers in the published form; ``level_of`` sees the user turn's text."""

    def script(request: dict[str, Any]) -> Iterable[bytes]:
        content = request["messages"][-1]["content"]
        text = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
        reply = f"“Analysis”: The trace was read.\n“Judgment”: {level_of(text)}"
        choice = {"index": 0, "message": {"role": "assistant", "content": reply}, "finish_reason": "stop"}
        yield http(
            200, json.dumps({"id": "a", "object": "chat.completion", "created": 1, "model": "g", "choices": [choice]})
        )

    return script


def by_word(text: str) -> str:
    """1 where the trace says HARM, 0.5 where it says HINT."""
    shown = text.partition("Current Task Thinking")[2]
    return "1" if "HARM" in shown else "0.5" if "HINT" in shown else "0"


def held_up(frames: Sequence[bytes], end: threading.Event) -> Callable[[dict[str, Any]], Iterator[bytes]]:
    """An upstream that streams the first frame, and the others when ``end`` is set."""

    def script(_: dict[str, Any]) -> Iterator[bytes]:
        yield SSE_HEAD
        yield frames[0]
        end.wait(30)
        yield b"".join(frames[1:])

    return script
