"""How much work something is, as a count: the calls that it makes, of Python's functions and of built-in ones."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


def calls_of(do: Callable[[], Any]) -> int:
    """How many calls ``do`` makes; going on with a generator is one, too."""
    count = 0

    def see(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(see)
    try:
        do()
    finally:
        sys.setprofile(before)
    return count
