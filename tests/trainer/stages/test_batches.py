"""Batches hold what the examples say, in an order that can be taken up again."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guardtrace_trainer.stages import dpo, folders, sft
from guardtrace_trainer.stages.batches import IGNORED, Images, LikeLengths, PairCollator, SftCollator, positions
from guardtrace_trainer.stages.encode import Encoder
from guardtrace_trainer.stages.settings import DpoSettings, SftSettings


@pytest.fixture(scope="module")
def encoder(small):
    return Encoder(small)


@pytest.fixture(scope="module")
def examples(encoder, corpus, rows):
    return sft.examples([(corpus, row) for row in rows], encoder, SftSettings(bare_share=0.25), limit=1024, seed=0)


@settings(deadline=None)
@given(st.lists(st.integers(1, 900), min_size=1, max_size=400), st.integers(1, 16), st.integers(0, 9))
def test_every_row_comes_once_an_epoch_in_batches_of_like_length(lengths, batch, seed):
    order = LikeLengths(lengths, batch, seed)
    first = list(order)
    assert sorted(first) == list(range(len(lengths)))
    assert first == list(LikeLengths(lengths, batch, seed))
    order.set_epoch(1)
    later = list(order)
    order.set_epoch(0)
    assert list(order) == first
    assert sorted(later) == sorted(first)
    pools = -(-len(lengths) // (batch * 50))
    inside = sum(
        max(lengths[p] for p in cut) - min(lengths[p] for p in cut)
        for cut in (first[at : at + batch] for at in range(0, len(first), batch))
    )
    assert inside <= pools * (max(lengths) - min(lengths))  # within a pool, batches don't overlap


def test_another_epoch_is_another_order():
    order = LikeLengths([5] * 64, 4, 0)
    first = list(order)
    order.set_epoch(1)
    assert list(order) != first


def test_positions_are_the_models_own(small, encoder, examples):
    network = folders.load(small, torch.float32)
    for example in examples[:3]:
        ids = torch.tensor([example.prompt])
        grid = None if example.grid is None else torch.tensor([example.grid])
        kinds = (ids == encoder.processor.image_token_id).int()
        own, _ = network.model.get_rope_index(ids, mm_token_type_ids=kinds, image_grid_thw=grid)
        merge = encoder.processor.image_processor.merge_size
        assert torch.equal(positions(example, encoder.processor.image_token_id, merge), own[:, 0])


def test_the_loss_is_on_the_annotation_alone(encoder, examples, rows):
    collate = SftCollator(examples, Images(encoder))
    batch = collate([{"place": place} for place in range(len(examples))])
    decode = encoder.processor.tokenizer.decode
    learned = [decode(labels[labels != IGNORED]) for labels in batch["labels"]]
    assert learned[: len(rows)] == [f"{row.annotation.text}<|im_end|>" for row in rows]
    assert len(learned) == len(rows) + 8
    assert set(learned[len(rows) :]) <= {"0<|im_end|>", "0.5<|im_end|>", "1<|im_end|>"}
    assert torch.equal(batch["labels"][batch["labels"] != IGNORED], batch["input_ids"][batch["labels"] != IGNORED])
    for example, ids, mask in zip(examples, batch["input_ids"], batch["attention_mask"], strict=True):
        assert ids[mask.bool()].tolist() == example.prompt + example.tails[0].ids
    shown = sum(example.image is not None for example in examples)
    assert batch["image_grid_thw"].shape == (shown, 3)
    assert batch["pixel_values"].shape[0] == int(batch["image_grid_thw"].prod(-1).sum())


def test_a_packed_pair_is_its_prompt_and_both_tails(encoder, corpus, pair_rows):
    examples = dpo.examples([(corpus, row) for row in pair_rows], encoder, DpoSettings(), limit=1024)
    batch = PairCollator(examples, Images(encoder), pack=True)([{"place": place} for place in (1, 0, 5)])
    chosen = [examples[place] for place in (1, 0, 5)]
    for row, example in enumerate(chosen):
        ids, tail = batch["packed_ids"][row], batch["packed_tail"][row]
        real = len(example.prompt) + sum(len(part.ids) for part in example.tails)
        assert ids[tail == 1].tolist() == example.tails[0].ids
        assert ids[tail == 2].tolist() == example.tails[1].ids
        assert ids[:real][tail[:real] == 0].tolist() == example.prompt
        for number in (0, 1):
            sequence = batch["input_ids"][row + number * len(chosen)]
            learned = batch["completion_mask"][row + number * len(chosen)].bool()
            assert sequence[learned].tolist() == example.tails[number].ids
            places = learned.nonzero()[:, 0]
            source = batch["packed_from"][row + number * len(chosen)][places - 1]
            assert source[0] == len(example.prompt) - 1  # from here the first token of either tail is foretold
            assert ids[source[1:]].tolist() == example.tails[number].ids[:-1]
