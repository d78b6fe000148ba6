"""Ways of cutting a stream in pieces."""

from __future__ import annotations

from itertools import pairwise
from typing import AnyStr

from hypothesis import strategies as st

places = st.lists(st.integers(0, 1000), max_size=12)
"""Where to cut, taken modulo the stream's length. A place that occurs twice makes an empty piece."""


def cut(stream: AnyStr, at: list[int]) -> list[AnyStr]:
    borders = [0, *sorted(place % (len(stream) + 1) for place in at), len(stream)]
    return [stream[start:end] for start, end in pairwise(borders)]


def in_two(stream: AnyStr) -> list[tuple[AnyStr, AnyStr]]:
    return [(stream[:at], stream[at:]) for at in range(len(stream) + 1)]


def one_by_one(stream: AnyStr) -> list[AnyStr]:
    return [stream[at : at + 1] for at in range(len(stream))]
