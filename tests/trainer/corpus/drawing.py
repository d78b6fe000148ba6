"""A scripted server at ``/v1/images/generations`` and ``/v1/chat/completions``, on a real socket."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

from PIL import Image

Answer = tuple[int, Any]


def drawn(colour: str = "teal", size: tuple[int, int] = (64, 48)) -> Answer:
    """A reply with an image."""
    data = io.BytesIO()
    Image.new("RGB", size, colour).save(data, "PNG")
    return 200, {"created": 1, "data": [{"b64_json": base64.b64encode(data.getvalue()).decode()}]}


def said(text: str) -> Answer:
    """A reply of a chat model that doesn't stream."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return 200, {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}


class Server:
    """Answers by ``script(prompt, number of the call from 1)``; keeps every request's body."""

    def __init__(self, script: Callable[[str, int], Answer]) -> None:
        self.script = script
        self.bodies: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with outer._lock:
                    outer.bodies.append(body)
                    number = len(outer.bodies)
                prompt = body["prompt"] if self.path.endswith("generations") else body["messages"][-1]["content"]
                status, answer = outer.script(prompt, number)
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.base_url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    @property
    def prompts(self) -> list[str]:
        """Of all requests to draw."""
        return [body["prompt"] for body in self.bodies if "prompt" in body]

    def endpoint(self, folder: Path, **fields: Any) -> Path:
        """A file that describes this server."""
        path = folder / "endpoint.yaml"
        path.write_text(json.dumps({"name": "painter", "base_url": self.base_url, "model": "m", **fields}))
        return path

    def __enter__(self) -> Server:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
