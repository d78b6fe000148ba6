"""``curl -N``, its output read as it comes. It knows no error frames: an error is what stands in its output."""

from __future__ import annotations

import json
import subprocess

from lines import MODEL, PROMPT, Seen, serve


def curl(url: str, streamed: bool) -> subprocess.Popen[str]:
    body = {"model": MODEL, "messages": [{"role": "user", "content": PROMPT}], "stream": streamed}
    command = [
        "curl",
        "-sSN",
        "-H",
        "Content-Type: application/json",
        "-d",
        json.dumps(body),
        f"{url}/chat/completions",
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def read(line: str, seen: Seen) -> None:
    seen.got(line)
    data = line.removeprefix("data: ").strip()
    if data in ("", "[DONE]"):
        return
    frame = json.loads(data)
    if "error" in frame:
        seen.error = f"error.{frame['error']['code']}"
        return
    for choice in frame["choices"]:
        part = choice.get("delta", choice.get("message"))
        seen.thinking += part.get("reasoning") or ""
        seen.text += part.get("content") or ""
        seen.finish = choice["finish_reason"] or seen.finish


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
