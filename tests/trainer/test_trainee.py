"""What is asked of each layer in the warm-up."""

from __future__ import annotations

import random

import pytest

torch = pytest.importorskip("torch", reason="the extra `train` isn't installed")
pytest.importorskip("transformers", reason="the extra `train` isn't installed")

from guardtrace_trainer.nano.batches import NOTHING, Batch, collate, encode  # noqa: E402
from guardtrace_trainer.nano.documents import Document, Piece  # noqa: E402
from guardtrace_trainer.nano.model import LAYERS  # noqa: E402
from guardtrace_trainer.nano.trainee import Trainee, layers_asked, loss, read  # noqa: E402

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


@pytest.mark.parametrize("asked", ["a line", "all so far", "a reply"])
def test_through_the_layers_that_are_asked_the_same_is_learned_as_through_all(asked):
    trainee, batch = Trainee(1), batch_of(asked)
    layers = layers_asked(batch)
    assert layers == {"a line": 2, "all so far": 3, "a reply": LAYERS}[asked]
    asked_alone, through_all = (read(trainee, batch, None, layers=count) for count in (layers, LAYERS))
    assert len(asked_alone) == layers + 1
    gradients = []
    for states in (asked_alone, through_all):
        found = loss(trainee, batch, states)
        gradients.append(torch.autograd.grad(found, trainee.language.layers[0].mlp.up_proj.weight)[0])
    assert torch.equal(*gradients)
    assert bool(gradients[0].any())


@torch.no_grad()
def test_hidden_states_are_those_of_the_class_itself():
    trainee, batch = Trainee(1), batch_of("a reply")
    own = trainee.language(
        inputs_embeds=trainee.language.embed_tokens(batch.ids),
        position_ids=batch.positions[:, None].expand(3, *batch.ids.shape),
        use_cache=False,
        output_hidden_states=True,
    )
    for state, theirs in zip(read(trainee, batch, None), own.hidden_states, strict=True):
        assert torch.allclose(state, theirs, atol=1e-6)


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
