"""``curl -N`` on chat completions or on messages, its output read as it comes. It knows no error frames: an error is what stands in its output."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from lines import MODEL, PROMPT, Seen, serve

MESSAGES = sys.argv[1] == "messages"


def curl(url: str, streamed: bool) -> subprocess.Popen[str]:
    body = {"model": MODEL, "messages": [{"role": "user", "content": PROMPT}], "stream": streamed}
    headers = ["Content-Type: application/json"]
    if MESSAGES:
        body["max_tokens"] = 900
        headers += ["anthropic-version: 2023-06-01"]
    path = "messages" if MESSAGES else "chat/completions"
    options = [option for header in headers for option in ("-H", header)]
    command = ["curl", "-sSN", *options, "-d", json.dumps(body), f"{url}/{path}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def read(line: str, seen: Seen) -> None:
    seen.got(line)
    data = line.removeprefix("data: ").strip()
    if data in ("", "[DONE]") or line.startswith(("event: ", ":")):
        return
    frame = json.loads(data)
    if "error" in frame:
        seen.error = f"error.{frame['error']['type' if MESSAGES else 'code']}"
    elif MESSAGES:
        read_message(frame, seen)
    else:
        read_chat(frame, seen)


def read_chat(frame: dict[str, Any], seen: Seen) -> None:
    for choice in frame["choices"]:
        part = choice.get("delta", choice.get("message"))
        seen.thinking += part.get("reasoning") or ""
        seen.text += part.get("content") or ""
        seen.finish = choice["finish_reason"] or seen.finish


def read_message(frame: dict[str, Any], seen: Seen) -> None:
    delta = frame.get("delta", {})
    for part in (delta, *frame.get("content", ())):
        seen.thinking += part.get("thinking", "")
        seen.text += part.get("text", "")
    seen.finish = delta.get("stop_reason") or frame.get("stop_reason") or seen.finish


def take(url: str, seen: Seen, streamed: bool) -> None:
    with curl(url, streamed) as running:
        assert running.stdout is not None
        for line in running.stdout:
            read(line, seen)
    if running.returncode:
        raise ChildProcessError(f"curl ended with status {running.returncode}")


def stream(url: str, seen: Seen) -> None:
    take(url, seen, True)


def whole(url: str, seen: Seen) -> None:
    take(url, seen, False)


def leave(url: str, seen: Seen) -> None:
    with curl(url, True) as running:
        assert running.stdout is not None
        for line in running.stdout:
            read(line, seen)
            if seen.thinking:
                break
        running.terminate()
    seen.left_by = "ending the process"


serve(None, stream, whole, leave)
