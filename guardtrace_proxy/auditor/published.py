"""The published model's system prompt: the authors' text, which isn't shipped here but fetched from their
repository.

The published weights were trained with it, so their published scores hold with it alone.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import httpx

from guardtrace_proxy.auditor.protocol import AuditorError

MODEL = "DloadingX/GuardTrace-VL-3B"
SOURCE = "https://raw.githubusercontent.com/xiangyx2020/GuardTrace-VL/{commit}/prompts/qta_pormpt.txt"
COMMIT: str | None = None
SHA256: str | None = None
"""Which version is the right one. Not known to this release, so the operator names both; never guessed."""
MAX_BYTES = 256 * 1024
TIMEOUT_SECONDS = 20.0
FETCH_COMMAND = "guardtrace auditor fetch-prompt"


class PromptNotFetched(AuditorError):
    """The prompt couldn't be fetched, or isn't the one that was asked for. Nothing was written."""


def prompt_path() -> Path:
    """Where the prompt is kept: the user's data folder (``XDG_DATA_HOME``, ``%LOCALAPPDATA%``, …)."""
    if root := os.environ.get("XDG_DATA_HOME"):
        folder = Path(root)
    elif sys.platform == "win32":
        folder = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        folder = Path.home() / "Library" / "Application Support"
    else:
        folder = Path.home() / ".local" / "share"
    return folder / "guardtrace-proxy" / "published-prompt.txt"


def published_prompt() -> str | None:
    """The fetched prompt, stripped as the authors' evaluation does; None where it wasn't fetched."""
    try:
        return prompt_path().read_text("utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def for_model(model: str, system_prompt: str | None, depth: str = "annotate") -> tuple[str | None, tuple[str, ...]]:
    """The system prompt for ``model`` (None: the checkpoint's own, or ours) and what to warn about."""
    if model.rstrip("/").rpartition("/")[2] != MODEL.rpartition("/")[2]:
        return system_prompt, ()
    warnings = () if depth == "annotate" else (_untrained(model, depth),)
    published = published_prompt()
    if published is not None and system_prompt in (None, published):
        return published, warnings
    given = "take out the prompt that was given (`--prompt` of guardtrace-train, or make_auditor's system_prompt)"
    remedy = f"run `{FETCH_COMMAND}`" if published is None else given
    warning = f"{model} runs with another system prompt than the published one, so its published scores don't hold"
    return system_prompt, (f"{warning}: {remedy}", *warnings)


def _untrained(model: str, depth: str) -> str:
    return (
        f"{model} runs with depth {depth}: nobody has trained it to judge without an analysis, and its label reads are "
        "only as good as their training and calibration: see docs/auditor.md, or set auditor.depth to annotate"
    )


def fetch_prompt(out: Path, *, commit: str | None = COMMIT, sha256: str | None = SHA256, source: str = SOURCE) -> None:
    """Fetch the prompt at ``commit``, check its SHA-256, and write it to ``out``.

    Raises:
        PromptNotFetched: with what to do; ``out`` is untouched.
    """
    if not commit or not sha256:
        raise PromptNotFetched(
            "this release doesn't know the prompt's commit and SHA-256: look up prompts/qta_pormpt.txt at "
            "https://github.com/xiangyx2020/GuardTrace-VL and give both, with --commit and --sha256"
        )
    if not _is_hex(commit, 40) or not _is_hex(sha256, 64):
        raise PromptNotFetched("a commit is 40 hex digits and a SHA-256 is 64: give both in full")
    content = _download(source.format(commit=commit))
    found = hashlib.sha256(content).hexdigest()
    if found != sha256.lower():
        raise PromptNotFetched(f"the fetched file's SHA-256 is {found}, not {sha256.lower()}: nothing was written")
    try:
        content.decode("utf-8")
        _write(out, content)
    except (UnicodeDecodeError, OSError) as error:
        raise PromptNotFetched(f"{out} can't be written: {error}") from error


def _is_hex(text: str, length: int) -> bool:
    return len(text) == length and all(c in "0123456789abcdefABCDEF" for c in text)


def _download(url: str) -> bytes:
    try:
        with (
            httpx.Client(timeout=TIMEOUT_SECONDS, follow_redirects=False) as client,
            client.stream("GET", url, headers={"accept-encoding": "identity"}) as response,
        ):
            if response.status_code != httpx.codes.OK:
                raise PromptNotFetched(f"{url} answered with HTTP status {response.status_code}: check the commit")
            content = b""
            for piece in response.iter_raw():
                content += piece
                if len(content) > MAX_BYTES:
                    raise PromptNotFetched(f"{url} is over {MAX_BYTES} bytes: it can't be the prompt")
            return content
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise PromptNotFetched(
            f"{url} can't be reached ({type(error).__name__}). Offline? Fetch it on another machine "
            f"and copy it to {prompt_path()}"
        ) from error


def _write(out: Path, content: bytes) -> None:
    """All of it or nothing."""
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(out.name + ".part")
    unfinished.write_bytes(content)
    unfinished.replace(out)
