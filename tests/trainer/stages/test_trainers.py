"""The trainers' own order of rows, through the loaders of accelerate."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from accelerate import skip_first_batches
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader

from guardtrace_trainer.stages.trainers import _Ours

ROWS = 16


class Loading:
    """What a trainer's own loader is, in the first of ``world`` processes."""

    def __init__(self, world: int) -> None:
        self.world = world
        self.lengths = [1] * ROWS
        self.args = SimpleNamespace(train_batch_size=2, gradient_accumulation_steps=1, world_size=world, seed=0)

    def _get_train_sampler(self) -> Any:
        raise NotImplementedError

    def get_train_dataloader(self) -> Any:
        plain = DataLoader(list(range(ROWS)), batch_size=2, sampler=self._get_train_sampler())
        return prepare_data_loader(plain, num_processes=self.world, process_index=0, put_on_device=False)


class Ours(_Ours, Loading):  # type: ignore[misc]
    pass


def tell(loader: Any, epoch: int) -> None:
    """As ``Trainer._run_epoch`` does it."""
    loader.set_epoch(epoch)
    inner = getattr(loader.batch_sampler, "batch_sampler", None)
    if hasattr(inner, "set_epoch"):
        inner.set_epoch(epoch)


def rows_of(loader: Any, epoch: int) -> list[list[int]]:
    tell(loader, epoch)
    return [batch.tolist() for batch in loader]


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_a_resumed_epoch_goes_on_with_its_own_rows(world, epoch):
    whole = [rows_of(loader, each) for loader in [Ours(world).get_train_dataloader()] for each in range(epoch + 1)]
    assert len({str(batches) for batches in whole}) == epoch + 1
    resumed = skip_first_batches(Ours(world).get_train_dataloader(), 1)
    assert rows_of(resumed, epoch) == whole[epoch][1:]
