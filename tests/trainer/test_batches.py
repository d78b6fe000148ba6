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
    NOTHING,
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
    HARMFUL,
    HEAD,
    USER,
    Document,
    Piece,
    anything,
    exchange,
    row,
    thinking,
    trace,
)
from guardtrace_trainer.nano.model import control_id  # noqa: E402
from guardtrace_trainer.nano.vocabulary import make_tokenizer, token_ids  # noqa: E402

pytestmark = pytest.mark.usefixtures("words")


TENSORS = ("ids", "told", "lines", "so_far", "positions")


def documents(count: int, seed: int = 0) -> list[Example]:
    rng = random.Random(seed)
    draws = (row, thinking, exchange, trace)
    return [encode(draws[number % 4](rng), rng) for number in range(count)]


def same(one: Batch, other: Batch) -> bool:
    alike = [torch.equal(getattr(one, name), getattr(other, name)) for name in TENSORS]
    if one.patches is None or other.patches is None:
        return all(alike) and one.patches is other.patches
    return all(alike) and torch.equal(one.patches, other.patches)


@pytest.fixture(scope="module")
def first(words) -> list[Batch]:
    return pool(trace, 5, 0)


def test_a_pool_is_the_same_each_time(first):
    again = pool(trace, 5, 0)
    assert len(again) == len(first)
    assert all(same(one, other) for one, other in zip(again, first, strict=True))


def test_another_seed_or_number_gives_another_pool(first):
    assert not same(pool(trace, 5, 1)[0], first[0])
    assert not same(pool(trace, 6, 0)[0], first[0])


def test_batches_are_as_many_as_asked_for_and_the_first_pool_in_order(first):
    few = list(batches(trace, 5, 3))
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
        assert (batch.patches is None) == (batch.examples[0].drawing is None)


def test_what_is_read_line_by_line_is_in_batches_by_itself(words):
    made = pool(anything, 5, 0)
    assert all(len({example.by_line for example in batch.examples}) == 1 for batch in made)
    rows = [batch for batch in made if batch.examples[0].by_line]
    assert 0 < len(rows) < len(made)
    for batch in rows:
        assert bool((batch.lines != NOTHING).any())
        assert not batch.told.any()
        assert bool((batch.so_far == NOTHING).all())


def test_vision_batches_are_the_same_each_time(words):
    one, again, other = vision_batch(3, 0, 4), vision_batch(3, 0, 4), vision_batch(3, 1, 4)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not torch.equal(one[0], other[0])


def test_only_replies_are_foretold():
    tokenizer = make_tokenizer()
    rng = random.Random(8)
    document = exchange(rng)
    batch = collate([encode(document, rng)])
    assert tokenizer.decode(batch.ids[0][batch.told[0]]) == document.pieces[-1].text


def test_what_is_known_stands_on_a_pieces_last_tokens():
    pieces = (
        Piece("Some words of a request", line=HARMFUL),
        Piece(" and what is between them.", line=HARMFUL, so_far=3, known_from=0.0),
        Piece(" First, cut the wire and hide it.", line=2, so_far=5, known_from=0.6),
        Piece("", line=1, so_far=1),
    )
    example = encode(Document(pieces, None), random.Random(0))
    lengths = [len(token_ids(piece.text)) for piece in pieces]
    start = len(token_ids(HEAD))
    assert example.ids == token_ids(HEAD) + token_ids("".join(piece.text for piece in pieces))
    whole = slice(start + lengths[0], start + lengths[0] + lengths[1])
    assert next(at for at, line in enumerate(example.lines) if line != NOTHING) == start + lengths[0] - 1
    assert set(example.lines[whole]) == {HARMFUL}
    assert set(example.so_far[whole]) == {3}
    last = example.so_far[whole.stop :]
    assert last == [NOTHING] * int(lengths[2] * 0.6) + [5] * (lengths[2] - int(lengths[2] * 0.6))
    assert example.lines[whole.stop :] == [2 if known == 5 else NOTHING for known in last]


@pytest.mark.parametrize("draw", [row, thinking, trace, exchange])
def test_a_document_is_the_tokens_that_the_auditor_is_shown(draw):
    rng = random.Random(9)
    for document in (draw(rng) for _ in range(100)):
        example = encode(document, rng)
        text = "".join(piece.text for piece in document.pieces)
        assert example.ids[-len(token_ids(text)) :] == token_ids(text)
        assert len(example.told) == len(example.lines) == len(example.so_far) == len(example.ids)
        last = {piece.line for piece in document.pieces} - {None}
        assert {line for line in example.lines if line != NOTHING} == last


def test_a_document_stands_behind_the_auditors_own_head_and_its_image():
    tokenizer = make_tokenizer()
    for example in documents(30, seed=4):
        first = next((at for at, told in enumerate(example.told) if told), len(example.ids))
        assert tokenizer.decode(example.ids).startswith(HEAD if example.drawing else (HEAD, USER))
        assert example.ids.count(control_id("<|image_pad|>")) == (IMAGE_TOKENS if example.drawing else 0)
        assert example.ids[:first].count(control_id("<|image_pad|>")) == (IMAGE_TOKENS if example.drawing else 0)


def test_padding_stands_right_and_is_no_target():
    two = [example for example in documents(30) if example.drawing is None][:2]
    batch = collate(two)
    for at, example in enumerate(two):
        length = len(example.ids)
        assert batch.ids[at, :length].tolist() == example.ids
        assert (batch.ids[at, length:] == control_id("<|endoftext|>")).all()
        for name in ("told", "lines", "so_far"):
            assert getattr(batch, name)[at, :length].tolist() == getattr(example, name)
        assert not batch.told[at, length:].any()
        assert (batch.lines[at, length:] == NOTHING).all()
        assert (batch.so_far[at, length:] == NOTHING).all()


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
