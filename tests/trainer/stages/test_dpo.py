"""Stages 2 and 3 for real, a few steps: the loss, and whom it is measured against."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
import torch
from safetensors.torch import load_file

from guardtrace_trainer.rows import RowError, write_rows
from guardtrace_trainer.stages import dpo, folders, trainers
from guardtrace_trainer.stages.batches import Images
from guardtrace_trainer.stages.dpo import run_dpo, run_ogdpo
from guardtrace_trainer.stages.encode import Encoder
from guardtrace_trainer.stages.settings import DpoSettings, Lora, StageError
from guardtrace_trainer.stages.trainers import dpo_trainer
from guardtrace_trainer.stages.training import features_of
from guardtrace_trainer.steps import Manifest
from tests.trainer.stages.corpora import pairs

FEW = DpoSettings(max_steps=5, batch_size=4, learning_rate=2e-3, beta=0.5, logging_steps=1, save_steps=2)


def nothing(_: str) -> None:
    """A log for nobody."""


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.fixture
def made(small, corpus, pair_rows, tmp_path):
    """Makes a trainer on the small checkpoint, and keeps it from the trainer's cleaning up."""

    def make(settings: DpoSettings, base: Path = small):
        encoder = Encoder(base)
        examples = dpo.examples([(corpus, row) for row in pair_rows], encoder, settings, limit=1024)
        network = folders.load(base, torch.float32)
        images = Images(encoder, features_of(network, encoder, examples))
        reference = None if settings.lora else folders.load(base, torch.float32)
        return dpo_trainer(network, reference, examples, images, settings, folder=tmp_path, seed=0, log=nothing)

    return make


def log_shares(network, trainer, places) -> torch.Tensor:
    """Log-probabilities of chosen and rejected annotations, computed plainly: a row at a time, from all logits."""
    sums = []
    collator = trainer.data_collator
    for number in (0, 1):
        for place in places:
            example = collator._examples[place]
            ids = torch.tensor([example.prompt + example.tails[number].ids])
            inputs = {}
            if example.image is not None:
                inputs = {
                    "pixel_values": collator._images.encoder.patches(example.image),
                    "image_grid_thw": torch.tensor([example.grid]),
                    "mm_token_type_ids": (ids == collator._image_id).int(),
                }
            with torch.no_grad():
                logits = network(input_ids=ids, **inputs).logits[0, :-1]
            start = len(example.prompt) - 1
            shares = logits.log_softmax(-1).gather(1, ids[0, 1:, None])[start:, 0]
            sums.append(shares.sum())
    return torch.stack(sums)


@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_the_loss_is_the_formula_on_numbers_made_by_hand(made, beta):
    trainer = made(DpoSettings(beta=beta, batch_size=2))
    batch = trainer.data_collator([{"place": 0}, {"place": 1}])
    shape = batch["input_ids"][:, 1:].shape
    policy = [-3.0, -5.0, -4.0, -2.5]  # chosen of two pairs, then rejected of both
    reference = [-3.5, -4.0, -3.0, -2.0]

    def saying(sums):
        """A model whose log-probabilities come to these sums, spread over what is learned."""
        wanted = batch["completion_mask"][:, 1:]
        shares = wanted * (torch.tensor(sums) / wanted.sum(1))[:, None]
        zeros = torch.zeros(shape)
        output = SimpleNamespace(
            log_probs=shares, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool(), label_mask=wanted.bool()
        )
        return lambda **_: output

    trainer.ref_model = saying(reference)
    loss = trainer.compute_loss(saying(policy), batch)
    by_hand = 0.0
    for pair in (0, 1):
        margin = (policy[pair] - reference[pair]) - (policy[pair + 2] - reference[pair + 2])
        by_hand += -math.log(1 / (1 + math.exp(-beta * margin))) / 2
    assert float(loss) == pytest.approx(by_hand, abs=1e-5)


def test_the_loss_in_training_is_the_formula_on_plain_log_probabilities(made):
    trainer = made(DpoSettings(beta=0.5, batch_size=3))
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.02)
    places = [1, 4, 9]
    loss = trainer.compute_loss(trainer.model, trainer.data_collator([{"place": place} for place in places]))
    # the frozen tower's features are the base's, so the reference's tower is the policy's, too
    trainer.model.model.visual.load_state_dict(trainer.ref_model.model.visual.state_dict())
    policy, reference = (log_shares(network, trainer, places) for network in (trainer.model, trainer.ref_model))
    ratios = policy - reference
    assert ratios.abs().max() > 0.1
    by_hand = -torch.nn.functional.logsigmoid(0.5 * (ratios[:3] - ratios[3:])).mean()
    assert float(loss) == pytest.approx(float(by_hand), abs=2e-4)


def test_an_sft_weight_adds_the_chosen_ones_likelihood(made):
    batch = [{"place": place} for place in (0, 1)]
    plain = made(DpoSettings(batch_size=2))
    both = made(DpoSettings(batch_size=2, sft_weight=0.5))
    losses = [float(trainer.compute_loss(trainer.model, trainer.data_collator(batch))) for trainer in (plain, both)]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-5)
    chosen = log_shares(plain.model, plain, [0, 1])[:2].sum()
    tokens = sum(len(plain.data_collator._examples[place].tails[0].ids) for place in (0, 1))
    assert losses[1] - losses[0] == pytest.approx(float(-0.5 * chosen / tokens), rel=1e-3)


@pytest.mark.parametrize("stage", ["dpo", "ogdpo"])
def test_the_reference_is_the_frozen_start(small, corpus, tmp_path, monkeypatch, stage):
    base = small
    if stage == "ogdpo":
        base = run_dpo(FEW, base=str(small), data=[corpus / "pairs.jsonl"], out=tmp_path / "m", seed=1, log=nothing)
    kept = {}

    def noting(network, reference, *rest, **more):
        kept["trainer"] = dpo_trainer(network, reference, *rest, **more)
        kept["before"] = log_shares(reference, kept["trainer"], [1, 2, 6])
        return kept["trainer"]

    monkeypatch.setattr(dpo, "dpo_trainer", noting)
    run = {"dpo": run_dpo, "ogdpo": run_ogdpo}[stage]
    out = run(FEW, base=str(base), data=[corpus / "pairs.jsonl"], out=tmp_path / "out", seed=0, log=nothing)
    trainer = kept["trainer"]
    reference = trainer.ref_model
    start = folders.load(base, torch.float32)
    assert not reference.training
    for name, parameter in reference.named_parameters():
        assert not parameter.requires_grad, name
        assert parameter.grad is None, name
        assert torch.equal(parameter, start.get_parameter(name)), name
    assert torch.equal(log_shares(start, trainer, [1, 2, 6]), kept["before"])
    assert torch.equal(log_shares(reference, trainer, [1, 2, 6]), kept["before"])
    batch = trainer.data_collator([{"place": place} for place in (1, 2, 6)])
    used = torch.cat(trainer.compute_ref_log_probs(reference, batch))
    assert torch.allclose(used, kept["before"], atol=2e-3)
    after = log_shares(folders.load(out, torch.float32), trainer, [1, 2, 6])
    margins = (after - kept["before"])[:3] - (after - kept["before"])[3:]
    assert margins.mean() > 0.05  # chosen has gained on rejected
    entries = [json.loads(line) for line in (out / f"{stage}.log.jsonl").read_text().splitlines()]
    assert entries[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)  # at the start both are the same
    assert entries[-2]["loss"] < math.log(2)
    assert json.loads((out / "guardtrace.json").read_text())["stages"][-1]["stage"] == stage


def test_with_adapters_the_reference_is_the_base_without_them(made, small):
    trainer = made(DpoSettings(max_steps=4, batch_size=4, learning_rate=1e-2, beta=0.5, lora=Lora(rank=4, alpha=8)))
    assert trainer.ref_model is None
    start = folders.load(small, torch.float32)
    expected = log_shares(start, trainer, [1, 2, 6])
    trainer.train()
    batch = trainer.data_collator([{"place": place} for place in (1, 2, 6)])
    trainer.model.eval()
    used = torch.cat(trainer.compute_ref_log_probs(trainer.model, batch))
    assert torch.allclose(used, expected, atol=2e-3)
    trained = log_shares(trainer.model.merge_and_unload(), trainer, [1, 2, 6])
    assert (trained - expected).abs().max() > 0.05


@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_adapters_have_the_dropout_that_is_asked_for(made, dropout):
    trainer = made(DpoSettings(batch_size=4, lora=Lora(rank=4, alpha=8, dropout=dropout)))
    found = {module.p for module in trainer.model.modules() if isinstance(module, torch.nn.Dropout)}
    assert found == ({dropout} if dropout else set())
    batch = trainer.data_collator([{"place": place} for place in (1, 2, 6)])
    assert trainer.model.config.get_text_config().attention_dropout == 0  # a base has none of its own
    start = trainer.compute_ref_log_probs(trainer.model, batch)
    again = trainer.compute_ref_log_probs(trainer.model, batch)
    assert all(torch.equal(one, other) for one, other in zip(start, again, strict=True))  # nor has the reference


def test_adapters_are_merged_before_the_next_stage(small, corpus, tmp_path):
    settings = FEW.model_copy(update={"lora": Lora(rank=4, alpha=8), "learning_rate": 1e-2})
    data = [corpus / "pairs.jsonl"]
    first = run_dpo(settings, base=str(small), data=data, out=tmp_path / "dpo", seed=0, log=nothing)
    second = run_ogdpo(settings, base=str(first), data=data, out=tmp_path / "ogdpo", seed=0, log=nothing)
    assert not list(first.glob("adapter*"))
    before, between, after = (weights(folder) for folder in (small, first, second))
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(before[name].float(), between[name])
    assert not torch.equal(between[name], after[name])


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(small, corpus, tmp_path):
    def run(out: str, log=nothing) -> Path:
        return run_dpo(FEW, base=str(small), data=[corpus / "pairs.jsonl"], out=tmp_path / out, seed=2, log=log)

    def stop(line: str) -> None:
        if line.startswith("step 3 "):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("stopped", stop)
    said: list[str] = []
    run("stopped", said.append)
    assert "dpo: goes on from checkpoint-2" in said
    one, other = weights(run("whole")), weights(tmp_path / "stopped")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_pairs_come_from_several_files_each_once(small, corpus, tmp_path):
    few = DpoSettings(max_steps=1, batch_size=2)
    expert = [msgspec.structs.replace(row, id=f"e{row.id}", origin="expert") for row in pairs(3)]
    write_rows(corpus / "expert_pairs.jsonl", expert)
    data = [corpus / "pairs.jsonl", corpus / "expert_pairs.jsonl"]
    out = run_ogdpo(few, base=str(small), data=data, out=tmp_path / "a", seed=0, log=nothing)
    counts = msgspec.json.decode((out / "ogdpo.manifest.json").read_bytes(), type=Manifest).counts
    assert counts["examples"] == 15
    with pytest.raises(RowError, match=r"pairs\.jsonl, line 1, row t0 stands in two of"):
        run_ogdpo(few, base=str(small), data=[data[0], data[0]], out=tmp_path / "b", seed=0, log=nothing)


def test_images_may_lie_elsewhere_than_their_rows(small, corpus, tmp_path):
    write_rows(tmp_path / "mined.jsonl", pairs(2))
    few = DpoSettings(max_steps=1, batch_size=2)
    data = [tmp_path / "mined.jsonl"]
    with pytest.raises(StageError, match=r"mined\.jsonl, line 2, row t1, field image: .*a\.png can.t be read.*name it"):
        run_ogdpo(few, base=str(small), data=data, out=tmp_path / "a", seed=0, log=nothing)
    run_ogdpo(few, base=str(small), data=data, out=tmp_path / "b", seed=0, log=nothing, corpus=corpus)


def test_a_reference_is_asked_for_exactly_where_there_are_no_adapters(small, corpus, pair_rows, tmp_path):
    encoder = Encoder(small)
    settings = DpoSettings()
    examples = dpo.examples([(corpus, row) for row in pair_rows], encoder, settings, limit=1024)
    with pytest.raises(ValueError, match="a reference is needed"):
        trainers.dpo_trainer(
            folders.load(small, torch.float32), None, examples, Images(encoder), settings,
            folder=tmp_path, seed=0, log=nothing,
        )  # fmt: skip


@pytest.mark.parametrize("adapters", [None, Lora(rank=4, alpha=8)])
def test_bfloat16_products_on_a_cpu_leave_the_weights_in_float32(small, corpus, tmp_path, adapters):
    settings = FEW.model_copy(update={"bf16": True, "max_steps": 2, "lora": adapters, "gradient_checkpointing": True})
    out = run_dpo(settings, base=str(small), data=[corpus / "pairs.jsonl"], out=tmp_path, seed=0, log=nothing)
    losses = msgspec.json.decode((out / "dpo.manifest.json").read_bytes(), type=Manifest).counts["losses"]
    assert losses[0] == pytest.approx(math.log(2), abs=2e-2)
    assert all(tensor.dtype == torch.float32 for tensor in weights(out).values())


def test_a_pair_with_one_analysis_is_learned_by_its_judgments(small, corpus, pair_rows):
    encoder = Encoder(small)
    bare = msgspec.structs.replace(pair_rows[0].rejected, analysis="")
    row = msgspec.structs.replace(pair_rows[0], rejected=bare)
    [example] = dpo.examples([(corpus, row)], encoder, DpoSettings(), limit=1024)
    assert example.tails == (encoder.bare(row.chosen), encoder.bare(row.rejected))
