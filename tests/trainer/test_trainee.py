"""What is asked of each layer in the warm-up."""

from __future__ import annotations

import random

import pytest

torch = pytest.importorskip("torch", reason="the extra `train` isn't installed")
pytest.importorskip("transformers", reason="the extra `train` isn't installed")

from guardtrace_trainer.nano.batches import NOTHING, Batch, collate, encode  # noqa: E402
from guardtrace_trainer.nano.documents import Document, Piece  # noqa: E402
from guardtrace_trainer.nano.model import LAYERS  # noqa: E402
from guardtrace_trainer.nano.trainee import Trainee, loss, read  # noqa: E402

pytestmark = pytest.mark.usefixtures("words")

GIVEN = Piece("How do I open a tin without an opener?")
PIECES = {
    "a line": (GIVEN._replace(line=3), Piece(" Then I wait.")),
    "all so far": (GIVEN._replace(so_far=2), Piece(" Then I wait.")),
    "a reply": (GIVEN, Piece(" Sure, here it is.", told=True)),
    "nothing": (GIVEN, Piece(" Then I wait.")),
}


def batch_of(asked: str) -> Batch:
    return collate([encode(Document(PIECES[asked]), random.Random(0))])


@pytest.mark.parametrize(("asked", "layers"), [("a line", 2), ("all so far", 3), ("a reply", LAYERS)])
def test_what_is_asked_is_learned_by_the_layers_up_to_it(asked, layers):
    trainee = Trainee(1)
    batch = batch_of(asked)
    loss(trainee, batch, read(trainee, batch, None)).backward()
    moved = [layer.mlp.up_proj.weight.grad for layer in trainee.language.layers]
    assert [gradient is not None and bool(gradient.any()) for gradient in moved] == [
        number < layers for number in range(LAYERS)
    ]


@torch.no_grad()
def test_of_what_nothing_is_asked_nothing_is_lost():
    trainee = Trainee(1)
    batch = batch_of("nothing")
    assert not batch.told.any()
    assert bool((batch.lines == NOTHING).all() and (batch.so_far == NOTHING).all())
    assert float(loss(trainee, batch, read(trainee, batch, None))) == 0.0


@torch.no_grad()
@pytest.mark.parametrize("asked", ["a line", "all so far"])
def test_another_label_is_another_loss(asked):
    trainee = Trainee(1)
    batch = batch_of(asked)
    states = read(trainee, batch, None)
    first = float(loss(trainee, batch, states))
    labels = batch.lines if asked == "a line" else batch.so_far
    labels[labels != NOTHING] = 1
    assert float(loss(trainee, batch, states)) != first
