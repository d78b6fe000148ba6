from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="the extra `local` isn't installed")

from guardtrace_proxy.auditor.reading import LEAST_ROOM_TOKENS, GrowingLayer, Reading  # noqa: E402


def states(length: int, first: int) -> tuple[object, object]:
    keys = torch.arange(first, first + length * 6, dtype=torch.float32).view(1, length, 2, 3).transpose(1, 2)
    return keys[0], -keys[0]


@given(st.lists(st.one_of(st.integers(1, 300), st.integers(-40, -1)), max_size=12))
def test_a_layer_is_what_concatenation_makes(steps: list[int]) -> None:
    layer, keys, first = GrowingLayer(), torch.zeros(2, 0, 3), 0
    for step in steps:
        if step < 0:
            removed = min(-step, keys.shape[-2])
            layer.crop(keys.shape[-2] - removed)
            keys = keys[..., : keys.shape[-2] - removed, :]
            continue
        new, values = states(step, first)
        first += step
        keys = torch.cat([keys, new], -2)  # type: ignore[list-item]
        layer.append(new, values)
        assert torch.equal(layer.keys, keys)
        assert torch.equal(layer.values, -keys)
        assert layer.length == keys.shape[-2]


def test_a_layer_grows_by_doubling_and_a_branch_has_its_own_memory() -> None:
    layer = GrowingLayer()
    layer.append(*states(1, 0))
    assert layer.nbytes == 2 * LEAST_ROOM_TOKENS * 6 * 4
    layer.append(*states(LEAST_ROOM_TOKENS, 9))
    assert layer.nbytes == 2 * 2 * LEAST_ROOM_TOKENS * 6 * 4
    branch = layer.head(1)
    branch.append(*states(1, 100))
    assert torch.equal(layer.keys[..., :1, :], branch.keys[..., :1, :])
    assert not torch.equal(layer.keys[..., :2, :], branch.keys)


@given(st.lists(st.integers(0, 2), max_size=6), st.lists(st.integers(0, 2), max_size=6))
def test_what_is_common_is_the_longest_common_beginning(read: list[int], wanted: list[int]) -> None:
    common = Reading([], read).common(wanted)
    assert read[:common] == wanted[:common]
    assert read[common : common + 1] != wanted[common : common + 1] or common == min(len(read), len(wanted))
