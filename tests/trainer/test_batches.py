"""From documents to tensors: the same for a seed."""

from __future__ import annotations

import random

import pytest

torch = pytest.importorskip("torch", reason="the extra `train` isn't installed")
pytest.importorskip("transformers", reason="the extra `train` isn't installed")

from guardtrace_trainer.nano.batches import (  # noqa: E402
    IMAGE_TOKENS,
    LONGEST,
    MOST_ROWS,
    POOL,
    TOKENS_PER_BATCH,
    Batch,
    Example,
    batches,
    collate,
    encode,
    pool,
    positions,
    vision_batch,
)
from guardtrace_trainer.nano.documents import (  # noqa: E402
    HEAD,
    USER,
    Document,
    exchange,
    pasted,
    plain,
    talk,
    thinking,
)
from guardtrace_trainer.nano.model import control_id  # noqa: E402
from guardtrace_trainer.nano.vocabulary import make_tokenizer  # noqa: E402

pytestmark = pytest.mark.usefixtures("words")


def documents(count: int, seed: int = 0) -> list[Example]:
    rng = random.Random(seed)
    draws = (plain, thinking, exchange, talk, pasted)
    return [encode(draws[number % 5](rng), rng) for number in range(count)]


def same(one: Batch, other: Batch) -> bool:
    alike = [torch.equal(getattr(one, name), getattr(other, name)) for name in ("ids", "shares", "positions")]
    if one.cells is None or other.cells is None:
        return all(alike) and one.cells is other.cells
    return all(alike) and torch.equal(one.cells, other.cells)


@pytest.fixture(scope="module")
def first(words) -> list[Batch]:
    return pool(plain, 5, 0)


def test_a_pool_is_the_same_each_time(first):
    again = pool(plain, 5, 0)
    assert len(again) == len(first)
    assert all(same(one, other) for one, other in zip(again, first, strict=True))


def test_another_seed_or_number_gives_another_pool(first):
    assert not same(pool(plain, 5, 1)[0], first[0])
    assert not same(pool(plain, 6, 0)[0], first[0])


def test_batches_are_as_many_as_asked_for_and_the_first_pool_in_order(first):
    few = list(batches(plain, 5, 3))
    assert len(few) == 3
    assert all(same(one, other) for one, other in zip(few, first, strict=False))


def test_batches_are_bounded_and_alike(first):
    assert sum(len(batch.examples) for batch in first) == POOL
    for batch in first:
        rows, length = batch.ids.shape
        assert 1 <= rows <= MOST_ROWS
        assert length <= LONGEST
        assert rows * length <= TOKENS_PER_BATCH
        assert len({example.drawing is None for example in batch.examples}) == 1
        assert (batch.cells is None) == (batch.examples[0].drawing is None)


def test_vision_batches_are_the_same_each_time(words):
    one, again, other = vision_batch(3, 0, 4), vision_batch(3, 0, 4), vision_batch(3, 1, 4)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not torch.equal(one[0], other[0])


def test_what_asks_for_nothing_is_left_out():
    def some(rng):
        return Document((("Hush.<|im_end|>", ""),), None) if rng.random() < 0.5 else exchange(rng)

    assert all((batch.shares == 1).any(1).all() for batch in pool(some, 1, 0))


def test_only_replies_are_foretold_of_a_talk():
    tokenizer = make_tokenizer()
    rng = random.Random(8)
    document = talk(rng)
    example = encode(document, rng)
    batch = collate([example, example])
    assert set(batch.shares.unique().tolist()) == {0.0, 1.0}
    told = tokenizer.decode(batch.ids[0][batch.shares[0] > 0])
    assert told == "".join(reply for _, reply in document.turns)


def test_a_document_stands_behind_the_auditors_own_head_and_its_image():
    tokenizer = make_tokenizer()
    for example in documents(30, seed=4):
        first = next(at for at, share in enumerate(example.shares) if share)
        assert tokenizer.decode(example.ids).startswith(HEAD if example.drawing else (HEAD, USER))
        assert example.ids.count(control_id("<|image_pad|>")) == (IMAGE_TOKENS if example.drawing else 0)
        assert example.ids[:first].count(control_id("<|image_pad|>")) == (IMAGE_TOKENS if example.drawing else 0)
        assert tokenizer.decode(example.ids).endswith("<|im_end|>")


def test_padding_stands_right_and_is_no_target():
    two = [example for example in documents(30) if example.drawing is None][:2]
    batch = collate(two)
    for row, example in enumerate(two):
        length = len(example.ids)
        assert batch.ids[row, :length].tolist() == example.ids
        assert (batch.ids[row, length:] == control_id("<|endoftext|>")).all()
        assert batch.shares[row, :length].tolist() == pytest.approx(example.shares)
        assert not batch.shares[row, length:].any()


def test_positions_are_those_of_the_class_itself():
    from guardtrace_trainer.nano.model import make_model

    model = make_model(0).model
    for picture in (False, True):
        example = next(example for example in documents(60) if (example.drawing is not None) is picture)
        ids = torch.tensor([example.ids])
        kinds = (ids == control_id("<|image_pad|>")).int()
        grid = torch.tensor([[1, 8, 8]]) if picture else None
        own, _ = model.get_rope_index(ids, mm_token_type_ids=kinds, image_grid_thw=grid)
        assert torch.equal(positions(len(example.ids), picture), own[:, 0])
