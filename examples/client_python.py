"""A plain OpenAI client behind the proxy: only ``base_url`` and the key are the proxy's.

python client_python.py ["your question"] [picture.png]

OPENAI_BASE_URL and OPENAI_API_KEY are read as by every OpenAI client; MODEL names the model (else the first listed).
Exit status 3 where the policy stopped the reply.
"""

from __future__ import annotations

import base64
import mimetypes
import os
import sys
from pathlib import Path
from typing import Any

from openai import APIError, OpenAI

EXAMPLE_KEY = "gt-example-acme-0dxHqoAGQukUtd_cVPUpQYdx4nuF0q_3PsoAoXII7VM"
DIM, PLAIN = ("\033[2m", "\033[0m") if sys.stdout.isatty() else ("", "")


def question_with_picture(question: str, picture: Path | None) -> list[dict[str, Any]]:
    """The content parts of a user message; the proxy takes pictures as data URLs."""
    parts: list[dict[str, Any]] = [{"type": "text", "text": question}]
    if picture is not None:
        kind = mimetypes.guess_type(picture.name)[0] or "image/png"
        data = base64.b64encode(picture.read_bytes()).decode()
        parts.insert(0, {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{data}"}})
    return parts


def main() -> int:
    question = sys.argv[1] if len(sys.argv) > 1 else "What is 17 times 23?"
    picture = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    try:
        content = question_with_picture(question, picture)
    except OSError as error:
        print(f"{picture} can't be read: {error.strerror}", file=sys.stderr)
        return 1
    client = OpenAI(
        base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8080/v1"),
        api_key=os.environ.get("OPENAI_API_KEY", EXAMPLE_KEY),
    )
    model = os.environ.get("MODEL") or client.models.list().data[0].id
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": content}],
        stream=True,
    )
    reason, shown = None, ""
    for chunk in stream:
        for choice in chunk.choices:
            delta = choice.delta
            # vLLM says `reasoning`, DeepSeek and older servers `reasoning_content`; the proxy passes either on.
            thinking = getattr(delta, "reasoning", None) or getattr(delta, "reasoning_content", None)
            for kind, text in (("thinking", thinking), ("answer", delta.content), ("refusal", delta.refusal)):
                if text:
                    if kind != shown:
                        print(f"\n[{kind}]")
                        shown = kind
                    print(f"{DIM}{text}{PLAIN}" if kind == "thinking" else text, end="", flush=True)
            reason = choice.finish_reason or reason
    print(f"\n\nfinish_reason: {reason}")
    if reason == "content_filter":
        # What was shown before the message stays valid: it was judged. Don't feed the message back as the model's.
        print("stopped by policy", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except APIError as error:
        # Refusals before the reply (a wrong key, a body that isn't audited), and a stream that broke off.
        is_cut = error.code == "content_filter"  # under a policy with `cut_shape: error`
        print(f"{type(error).__name__}: {error.message}", file=sys.stderr)
        if is_cut:
            print("stopped by policy", file=sys.stderr)
        sys.exit(3 if is_cut else 1)
