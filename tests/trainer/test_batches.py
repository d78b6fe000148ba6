"""From excerpts to tensors: the same for a seed, and labels where they are known."""

from __future__ import annotations

import random

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra `train` isn't installed")
pytest.importorskip("transformers", reason="the extra `train` isn't installed")

from guardtrace_trainer.nano import batches as made  # noqa: E402
from guardtrace_trainer.nano.batches import (  # noqa: E402
    IMAGE_TOKENS,
    LONGEST,
    TOKENS_PER_BATCH,
    Batch,
    Pools,
    VisionBatches,
    batches,
    collate,
    encode,
    load,
    positions,
)
from guardtrace_trainer.nano.corpus import Excerpt, make_sample, random_excerpt, whole  # noqa: E402
from guardtrace_trainer.nano.model import control_id  # noqa: E402
from guardtrace_trainer.nano.vocabulary import make_tokenizer  # noqa: E402

pytestmark = pytest.mark.usefixtures("words")


def excerpts(count: int, seed: int = 0) -> list[Excerpt]:
    rng = random.Random(seed)
    return [random_excerpt(make_sample(rng), rng) for _ in range(count)]


def same(one: Batch, other: Batch) -> bool:
    alike = [torch.equal(getattr(one, name), getattr(other, name)) for name in ("ids", "target", "positions")]
    known = [(e.known, e.asked, e.harm) for e in one.examples] == [(e.known, e.asked, e.harm) for e in other.examples]
    images = (one.images is None) == (other.images is None)
    if images and one.images is not None:
        images = np.array_equal(one.images, other.images)
    return all(alike) and known and images


@pytest.fixture(scope="module")
def pool(words) -> list[Batch]:
    return Pools(5)[0]


def test_a_pool_is_the_same_whatever_the_number_of_workers(pool):
    for workers in (0, 2):
        (again,) = load(Pools(5), 1, workers)
        assert len(again) == len(pool)
        assert all(same(one, other) for one, other in zip(pool, again, strict=True))


def test_another_seed_or_number_gives_another_pool(pool):
    assert not same(Pools(5)[1][0], pool[0])
    assert not same(Pools(6)[0][0], pool[0])


def test_batches_are_as_many_as_asked_for_and_the_first_pool_in_order(pool):
    few = list(batches(5, 3, 0))
    assert len(few) == 3
    assert all(same(one, other) for one, other in zip(few, pool, strict=False))


def test_batches_are_bounded_and_alike(pool):
    assert sum(len(batch.examples) for batch in pool) > 180
    for batch in pool:
        rows, length = batch.ids.shape
        assert 2 <= rows <= 28
        assert length <= LONGEST
        assert rows * length <= TOKENS_PER_BATCH
        assert len({example.has_image for example in batch.examples}) == 1
        assert (batch.images is not None) == batch.examples[0].has_image


def test_vision_batches_are_the_same_whatever_the_number_of_workers(words):
    for one, other in zip(load(VisionBatches(3, 4), 2, 0), load(VisionBatches(3, 4), 2, 1), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_known_labels_lie_at_sentence_ends():
    tokenizer = make_tokenizer()
    seen = 0
    for excerpt in excerpts(60):
        example = encode(excerpt, random.Random(0))
        for token, strength, own in example.known:
            read = tokenizer.decode(example.ids[: token + 1])
            thinking = read.partition("Current Task Thinking: ")[2]
            ends = {excerpt.thinking[:offset].rstrip(): levels for offset, *levels in excerpt.ends}
            # The token that holds a sentence's last character may hold a line break or a quote after it.
            fitting = [
                levels for text, levels in ends.items() if thinking.startswith(text) and len(thinking) - len(text) <= 3
            ]
            assert [strength, own] in fitting
            seen += 1
        assert tokenizer.decode(example.ids[: example.asked + 1]).endswith(excerpt.sample.question[-3:].strip()[-1:])
    assert seen > 100


def test_prompt_and_target_are_the_published_layout():
    tokenizer = make_tokenizer()
    for excerpt in excerpts(20, seed=4):
        for bare in (False, True):
            example = encode(excerpt, random.Random(0), bare=bare)
            target = tokenizer.decode(example.ids[example.prompt_length :])
            assert target == (excerpt.judgment if bare else excerpt.reply) + "<|im_end|>"
            prompt = tokenizer.decode(example.ids[: example.prompt_length])
            assert prompt.endswith(f"{excerpt.user_text}{made.TAIL}")
            assert example.ids.count(control_id("<|image_pad|>")) == (IMAGE_TOKENS if example.has_image else 0)


def test_an_example_has_three_turns():
    excerpt = whole(make_sample(random.Random(1), cue="text"))
    ids = encode(excerpt, random.Random(0)).ids
    assert ids.count(control_id("<|im_start|>")) == 3
    assert ids.count(control_id("<|im_end|>")) == 3


def test_padding_stands_right_and_is_no_target():
    two = [encode(excerpt, random.Random(0)) for excerpt in excerpts(30) if excerpt.sample.picture is None][:2]
    batch = collate(two)
    for row, example in enumerate(two):
        length = len(example.ids)
        assert batch.ids[row, :length].tolist() == example.ids
        assert (batch.ids[row, length:] == control_id("<|endoftext|>")).all()
        assert batch.target[row].nonzero().flatten().tolist() == list(range(example.prompt_length, length))


def test_positions_are_those_of_the_class_itself():
    from guardtrace_trainer.nano.model import make_model

    model = make_model(0).model
    for picture in (False, True):
        example = next(
            encode(excerpt, random.Random(0))
            for excerpt in excerpts(60)
            if (excerpt.sample.picture is not None) is picture
        )
        ids = torch.tensor([example.ids])
        kinds = (ids == control_id("<|image_pad|>")).int()
        grid = torch.tensor([[1, 8, 8]]) if picture else None
        own, _ = model.get_rope_index(ids, mm_token_type_ids=kinds, image_grid_thw=grid)
        assert torch.equal(positions(len(example.ids), picture), own[:, 0])
