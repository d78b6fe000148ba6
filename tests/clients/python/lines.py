"""A client script's talk with the tests: a request a line on standard input, what was seen a line on standard output."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

MODEL = "thinker"
PROMPT = "Please help."
KEY = "EMPTY"

# One event loop that goes on between the cases, as a server's does: nothing may need its end to be closed.
LOOP = asyncio.new_event_loop()
threading.Thread(target=LOOP.run_forever, daemon=True).start()


@dataclass
class Seen:
    """What a user of the client gets.

    ``error`` is the exception's class behind the name of its package, ``left_by`` how the client was told to leave, and
    ``everything`` all that it handed over, as text, in search of leaks.
    """

    thinking: str = ""
    text: str = ""
    finish: str | None = None
    error: str | None = None
    left_by: str | None = None
    everything: list[str] = field(default_factory=list)

    def got(self, part: Any) -> None:
        self.everything.append(repr(part))


Case = Callable[[str, Seen], Any]


def serve(package: str | None, stream: Case, whole: Case, leave: Case) -> None:
    """Do as each line says: ``{"case": "stream" | "whole" | "leave", "url": base URL}``. Cases may be coroutines."""
    cases = {"stream": stream, "whole": whole, "leave": leave}
    print(json.dumps({"version": version(package) if package else None}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        seen = Seen()
        try:
            going = cases[request["case"]](request["url"], seen)
            if going is not None:
                asyncio.run_coroutine_threadsafe(going, LOOP).result()
        except Exception as error:
            seen.error = f"{type(error).__module__.partition('.')[0]}.{type(error).__qualname__}"
            seen.got(error)
        print(json.dumps(asdict(seen)), flush=True)
