"""A real HTTP server that answers from a function, and files to evaluate on."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

from PIL import Image

from tests.auditor.trials import reply_to_trial

Answer = Callable[[str, dict[str, Any]], tuple[int, Any]]


class Served:
    """``answer(path, body)`` gives status and JSON, with status 0 the connection breaks off; ``requests`` are the paths
    and bodies that came."""

    def __init__(self, answer: Answer) -> None:
        self.requests: list[tuple[str, dict[str, Any]]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                if (trial := reply_to_trial(body)) is not None:
                    self._send(200, trial)
                    return
                outer.requests.append((self.path, body))
                self._send(*answer(self.path, body))

            def do_GET(self) -> None:
                self._send(404, {"error": {"message": "no such route"}})

            def _send(self, status: int, value: Any) -> None:
                if status == 0:
                    self.close_connection = True
                    return
                data = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    @property
    def bodies(self) -> list[dict[str, Any]]:
        """Those of chat completions."""
        return [body for path, body in self.requests if path.endswith("/chat/completions")]

    @property
    def asked(self) -> list[str]:
        """The texts of the items that were asked about; an auditor also tries out whether the server sees images."""
        return [text for text in map(text_of, self.bodies) if "Question " in text]

    def __enter__(self) -> Served:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def completion(text: str, images: int = 0) -> dict[str, Any]:
    """A chat completion that counts its images."""
    message = {"role": "assistant", "content": text}
    prompt_tokens = 900 + 100 * images
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": 5, "total_tokens": prompt_tokens + 5}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}


def text_of(request: dict[str, Any]) -> str:
    """The text of a request's last message."""
    content = request["messages"][-1]["content"]
    return content if isinstance(content, str) else next(part["text"] for part in content if part["type"] == "text")


def auditor_says(level_of: Callable[[str], str]) -> Answer:
    """An auditor that can do nothing beyond chat completions; ``level_of`` sees the user's text."""

    def answer(path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if not path.endswith("/chat/completions"):
            return 404, {"error": {"message": "no such route"}}
        images = sum(
            len(message["content"]) - 1 for message in body["messages"] if isinstance(message["content"], list)
        )
        return 200, completion(f"“Analysis”: As it says.\n“Judgment”: {level_of(text_of(body))}", images)

    return answer


def row(number: int, level: float, **fields: Any) -> dict[str, Any]:
    """A line of qta.jsonl whose thinking names its level."""
    return {
        "id": f"item-{number:03d}",
        "category": "other",
        "question": f"Question {number}?",
        "image": None,
        "thinking": f"This is level {level:g}. It goes on.",
        "answer": "So it is.",
        "level": level,
        **fields,
    }


def write_qta(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """An evaluation folder."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (folder / "qta.jsonl").write_text("".join(lines), "utf-8")
    return folder


def write_image(path: Path, colour: str = "red") -> Path:
    """A small PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 10), colour).save(path, "PNG")
    return path
