"""The faster forward pass gives TRL what its own gives: log-probabilities, what it logs, and gradients."""

from __future__ import annotations

import pytest
import torch
from trl.trainer.utils import add_fused_lm_head

from guardtrace_trainer.stages import dpo, folders, sft
from guardtrace_trainer.stages.answers import answers_only
from guardtrace_trainer.stages.batches import Images, PairCollator, SftCollator
from guardtrace_trainer.stages.encode import Encoder
from guardtrace_trainer.stages.settings import DpoSettings, SftSettings
from guardtrace_trainer.stages.training import features_of

OUTPUTS = ("log_probs", "entropy", "mean_logits", "is_top1")


@pytest.fixture(scope="module")
def encoder(small):
    return Encoder(small)


def networks(folder):
    """One as TRL has it, one of ours."""
    made = []
    for ours in (False, True):
        network = folders.load(folder, torch.float32)
        network.requires_grad_(True)
        add_fused_lm_head(network, outputs=OUTPUTS)
        if ours:
            answers_only(network, bf16=False)
        made.append(network)
    return made


def compare(stock, fast, batch_of_stock, batch_of_fast, labels):
    theirs = stock(**batch_of_stock, labels=labels, use_cache=False, fused_lm_head=True)
    ours = fast(**batch_of_fast, labels=labels, use_cache=False, fused_lm_head=True)
    assert torch.equal(theirs.label_mask, ours.label_mask)
    for name in OUTPUTS:
        one, other = getattr(theirs, name), getattr(ours, name)
        assert one.shape == other.shape
        assert torch.allclose(one.float(), other.float(), atol=2e-5), name
    assert ours.log_probs.min() < -1
    weights = torch.randn(ours.log_probs.shape, generator=torch.Generator().manual_seed(0))
    for output in (theirs, ours):
        (output.log_probs * weights).sum().backward()
    theirs_by_name = dict(stock.named_parameters())
    for name, parameter in fast.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(parameter.grad, theirs_by_name[name].grad, atol=1e-3, rtol=1e-3), name
    return {name for name, parameter in fast.named_parameters() if parameter.grad is not None}


def test_sft_with_pixels(small, encoder, corpus, rows):
    examples = sft.examples([(corpus, row) for row in rows], encoder, SftSettings(bare_share=0.2), limit=1024, seed=0)
    batch = SftCollator(examples, Images(encoder))([{"place": place} for place in (0, 1, 2, 22, 27)])
    labels = batch.pop("labels")
    trained = compare(*networks(small), batch, batch, labels)
    assert any("visual" in name for name in trained)


def test_pairs_packed_with_features(small, encoder, corpus, pair_rows):
    examples = dpo.examples([(corpus, row) for row in pair_rows], encoder, DpoSettings(), limit=1024)
    stock, fast = networks(small)
    places = [{"place": place} for place in (3, 1, 2, 8)]
    plain = PairCollator(examples, Images(encoder), pack=False)(places)
    features = features_of(folders.load(small, torch.float32), encoder, examples)
    packed = PairCollator(examples, Images(encoder, features), pack=True)(places)
    assert "pixel_values" not in packed
    mask = plain.pop("completion_mask")
    assert torch.equal(mask, packed.pop("completion_mask"))
    labels = plain["input_ids"].masked_fill(mask == 0, -100)
    for network in (stock, fast):
        network.model.visual.requires_grad_(False)
    assert not any("visual" in name for name in compare(stock, fast, plain, packed, labels))


def test_other_calls_stay_as_they_were(small):
    stock, fast = networks(small)
    ids = torch.tensor([[20, 30, 40]])
    with torch.no_grad():
        assert torch.equal(stock(input_ids=ids).logits, fast(input_ids=ids).logits)
