"""The fast paths of training give what the network's own class gives."""

from __future__ import annotations

import random

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra `train` isn't installed")
transformers = pytest.importorskip("transformers", reason="the extra `train` isn't installed")

from PIL import Image  # noqa: E402

from guardtrace_trainer.nano.batches import pool  # noqa: E402
from guardtrace_trainer.nano.documents import trace  # noqa: E402
from guardtrace_trainer.nano.model import (  # noqa: E402
    HIDDEN,
    LOOKS_BACK,
    NEAR,
    causal_attention,
    class_vectors,
    control_id,
    make_model,
    patch_order,
    patchify,
    see,
    vision_rotations,
)
from guardtrace_trainer.nano.render import CELLS, CLASSES, PATCHES, any_picture, render  # noqa: E402
from guardtrace_trainer.nano.trainee import Trainee, read  # noqa: E402
from guardtrace_trainer.nano.vocabulary import make_tokenizer, read_embeddings  # noqa: E402

pytestmark = pytest.mark.usefixtures("words")


@pytest.fixture(scope="module")
def trainee(words) -> Trainee:
    return Trainee(1)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    rng = random.Random(2)
    return np.stack([render(any_picture(rng), rng).pixels for _ in range(3)])


def test_patches_are_those_of_the_shipped_image_processor(words, images):
    from guardtrace_trainer.nano.export import make_processor

    pictures = [Image.fromarray(pixels) for pixels in images]
    own = make_processor().image_processor(pictures, return_tensors="pt")
    assert own["image_grid_thw"].tolist() == [[1, PATCHES, PATCHES]] * 3
    assert torch.allclose(patchify(images).reshape(-1, 1176), own["pixel_values"], atol=1e-5)


def test_letters_follow_the_order_of_patches():
    letters = np.arange(PATCHES**2).reshape(PATCHES, PATCHES)
    images = np.repeat(np.repeat(letters, 14, 0), 14, 1).astype(np.uint8)[None, ..., None].repeat(3, -1)
    shades = patchify(images)[0, :, 0]
    assert patch_order(letters).tolist() == torch.argsort(torch.argsort(shades)).tolist()
    assert sorted(patch_order(letters)) == list(range(PATCHES**2))


@torch.no_grad()
def test_see_is_the_vision_towers_own_forward(trainee, images):
    patches = patchify(images)
    _, tokens = see(trainee.vision, patches, vision_rotations(trainee.vision, torch.device("cpu")))
    grid = torch.tensor([[1, PATCHES, PATCHES]] * len(images))
    own = trainee.vision(patches.reshape(-1, patches.shape[-1]), grid_thw=grid)
    assert tokens.shape == (3, CELLS**2, HIDDEN)
    assert torch.allclose(tokens.reshape(-1, HIDDEN), own.pooler_output, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("pictured", [True, False])
def test_read_is_the_class_own_forward_with_pixels(trainee, pictured):
    batch = min((b for b in pool(trace, 4, 0) if (b.patches is not None) is pictured), key=lambda b: b.ids.numel())
    lengths = [len(example.ids) for example in batch.examples]
    mask = torch.zeros_like(batch.ids)
    for row, length in enumerate(lengths):
        mask[row, :length] = 1
    tokens = None
    more = {}
    if pictured:
        patches = patchify(np.stack([example.drawing.pixels for example in batch.examples]))
        tokens = see(trainee.vision, patches, trainee.rotations)[1]
        more = {
            "pixel_values": patches.reshape(-1, patches.shape[-1]),
            "image_grid_thw": torch.tensor([[1, PATCHES, PATCHES]] * len(batch.examples)),
            "mm_token_type_ids": (batch.ids == control_id("<|image_pad|>")).int(),
        }
    own = trainee.model.model(input_ids=batch.ids, attention_mask=mask, use_cache=False, **more).last_hidden_state
    hidden = read(trainee, batch, tokens)[-1]
    for row, length in enumerate(lengths):
        assert torch.allclose(hidden[row, :length], own[row, :length], atol=2e-4)


def test_the_same_seed_is_the_same_network(words):
    one, same, other = make_model(3), make_model(3), make_model(4)
    for name, parameter in one.named_parameters():
        assert torch.equal(parameter, dict(same.named_parameters())[name])
    assert not torch.equal(one.model.visual.patch_embed.proj.weight, other.model.visual.patch_embed.proj.weight)


def test_heads_of_the_first_layer_begin_by_looking_back(words):
    language = make_model(2).model.language_model
    language.config._attn_implementation = "eager"
    with torch.no_grad():
        seen = language(input_ids=torch.arange(1000, 1040)[None], output_attentions=True).attentions
    for head, back in enumerate(LOOKS_BACK):
        back_there = torch.diagonal(seen[0][0, head], -back)
        assert back_there.mean() > 0.8
        assert back_there.min() > 0.5
    assert all(layer[0, :, 20:].max() < 0.2 for layer in seen[2:])


def test_heads_of_the_second_layer_begin_by_looking_near(words):
    language = make_model(2).model.language_model
    language.config._attn_implementation = "eager"
    ids = torch.arange(1000, 1200)[None]
    with torch.no_grad():
        seen = language(input_ids=ids, output_attentions=True).attentions[1][0, :, -1].flip(-1)
    far = [int((looks.cumsum(0) < 0.8).sum()) for looks in seen]
    assert far[0] < 12 <= far[1] < far[2] < 30 < 150 < far[3], far
    assert [bool(frequencies) for frequencies in NEAR] == [True, True, True, False]


def test_embeddings_are_the_shipped_ones_and_tied(trainee):
    table = trainee.model.get_input_embeddings().weight
    assert torch.equal(table.detach(), read_embeddings())
    assert trainee.model.lm_head.weight is table
    assert table.shape == (len(make_tokenizer()), HIDDEN)
    assert not table.requires_grad


def test_it_is_the_published_architecture_and_small(trainee):
    assert type(trainee.model).__name__ == "Qwen2_5_VLForConditionalGeneration"
    # In bf16 at most 20 MB, tokenizer included.
    assert 2 * sum(parameter.numel() for parameter in trainee.model.parameters()) < 18_000_000


def test_class_vectors_are_fixed_and_far_apart():
    vectors = class_vectors()
    assert torch.equal(vectors, class_vectors())
    likeness = torch.nn.functional.normalize(vectors, dim=1) @ torch.nn.functional.normalize(vectors, dim=1).T
    assert (likeness - torch.eye(len(CLASSES))).abs().max() < 0.5


def test_causal_attention_is_torchs_own():
    query, key, value = torch.randn(2, 4, 9, 8), torch.randn(2, 2, 9, 8), torch.randn(2, 2, 9, 8)
    mixed, _ = causal_attention(torch.nn.Identity(), query, key, value, None, 8**-0.5)
    own = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(mixed, own.transpose(1, 2))
