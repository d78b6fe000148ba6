"""The warm-up, which stands for a pre-trained base: seeded and counted in steps, so that a seed gives the same model
again on the same kind of device.

``vision``: the tower alone learns to tell words and pictograms apart, cell by cell. ``nearby``: the language model
alone learns half-way through its layers what a request asks for and what a sentence gives. ``anything``: behind the
tower, which stays as it is, it learns what a trace is so far, one layer on, and to answer, as an instruct model does.
None of them ever sees an analysis or a judgment: those come from SFT, DPO and OGDPO.
"""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from guardtrace_trainer.children import die_with_parent
from guardtrace_trainer.muon import Muon
from guardtrace_trainer.nano.batches import batches, vision_batch
from guardtrace_trainer.nano.documents import Draw, anything, nearby
from guardtrace_trainer.nano.halfway import Halfway, write
from guardtrace_trainer.nano.model import HIDDEN, patchify, see
from guardtrace_trainer.nano.plan import WarmUp
from guardtrace_trainer.nano.render import CLASSES, UNSURE, any_picture, render
from guardtrace_trainer.nano.trainee import LETTERS, Trainee, layers_asked, loss, pictured, read
from guardtrace_trainer.nano.vocabulary import EMBEDDING_RMS, use

LAST_MERGER = "merger.mlp.2"
VISION_OTHERS_LR = 1.5e-3
"""Peak rate of the patch embedding, the norms and the letters' head."""
Log = Callable[[str], None]


def warm_up(
    seed: int, plan: WarmUp, kept: Path, log: Log, vocabulary: Path | None = None, *, side_by_side: bool = True
) -> Trainee:
    """All parts for one seed, each on one thread: more would change the order of sums.

    A part that was finished earlier under ``kept`` is read from there; one that was begun goes on where its state was
    last kept. Unless ``side_by_side`` they are trained in this process, one after the other, with the same result.
    """
    kept.mkdir(parents=True, exist_ok=True)
    missing = [name for name in ("vision", "nearby", "anything") if not (kept / f"{name}.pt").exists()]
    train = partial(_train_part, seed=seed, plan=plan, kept=kept, log=log, vocabulary=vocabulary)
    if side_by_side:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(2, mp_context=spawn, initializer=die_with_parent) as processes:
            for work in [processes.submit(train, name) for name in missing if name != "anything"]:
                work.result()
            if "anything" in missing:
                processes.submit(train, "anything").result()
    else:
        for name in missing:
            train(name)
    for begun in kept.glob("*.halfway"):
        begun.unlink()
    trainee = Trainee(seed)
    _read(trainee.vision, kept / "vision.pt")
    _read(trainee.reader, kept / "anything.pt")
    return trainee


def _read(learning: nn.Module, path: Path) -> None:
    learning.load_state_dict(torch.load(path, weights_only=True))


def _train_part(name: str, seed: int, plan: WarmUp, kept: Path, log: Log, vocabulary: Path | None) -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if vocabulary is not None:
        use(vocabulary)
    trainee = Trainee(seed)
    began = time.monotonic()
    if name == "vision":
        trained = train_vision(trainee, plan, seed, log, kept)
    elif name == "nearby":
        trained = train_reader(trainee, plan, nearby, 5000 + seed, plan.nearby_steps, seed, log, kept)
    else:
        _read(trainee.vision, kept / "vision.pt")
        _read(trainee.reader, kept / "nearby.pt")
        trained = train_reader(trainee, plan, anything, 6000 + seed, plan.language_steps, seed, log, kept)
    log(f"{name} took {time.monotonic() - began:.0f} s")
    write(kept / f"{name}.pt", trained.state_dict())


def _schedule(step: int, steps: int, decay_from: float) -> float:
    """Linear warm-up over 30 steps, then constant, then linear to 3 % from ``decay_from`` on."""
    share = step / steps
    decay = 1.0 if share < decay_from else max(0.03, (1 - share) / (1 - decay_from))
    return min(1.0, (step + 1) / 30) * decay


def _set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("peak", group["lr"]) * factor


def _step(optimizer: torch.optim.Optimizer, loss: torch.Tensor, clipped: list[nn.Parameter]) -> None:
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    nn.utils.clip_grad_norm_(clipped, 1.0)
    optimizer.step()


def whiten_patches(vision: Any, seed: int) -> None:
    """Patch embedding := whitening filters of the corpus's own patches, so that white paper doesn't drown letters."""
    rng = random.Random(1000 + seed)
    images = np.stack([render(any_picture(rng), rng).pixels for _ in range(400)])
    patches = patchify(images).reshape(-1, 3, 2, 196)[:, :, 0].reshape(-1, 588)
    patches = patches - patches.mean(0)
    values, vectors = torch.linalg.eigh((patches.T @ patches / len(patches)).double())
    weight = vision.patch_embed.proj.weight
    count = weight.shape[0]
    values, vectors = values.flip(0)[:count].float(), vectors.flip(1)[:, :count].float()
    filters = (vectors / (values + 0.02).sqrt()).T.reshape(count, 3, 1, 14, 14).repeat(1, 1, 2, 1, 1) / 2
    with torch.no_grad():
        weight.copy_(filters.reshape(weight.shape))


def train_vision(trainee: Trainee, plan: WarmUp, seed: int, log: Log, kept: Path) -> nn.Module:
    """Dense labels from the renderer: each cell's class, and the letter of each patch."""
    vision = trainee.vision
    whiten_patches(vision, seed)
    parameters = list(vision.parameters())
    others = [parameter for parameter in parameters if parameter.ndim != 2]
    matrices = [parameter for parameter in parameters if parameter.ndim == 2]
    optimizer = Muon(matrices, [*others, *trainee.letters.parameters()], plan.vision_lr, VISION_OTHERS_LR)
    targets = trainee.classes / EMBEDDING_RMS
    class_weight = torch.ones(len(CLASSES))
    letter_weight = torch.ones(LETTERS)
    class_weight[0], letter_weight[0] = 0.3, 0.2
    networks = {"vision": vision, "letters": trainee.letters}
    halfway = Halfway(kept / "vision.halfway", networks, optimizer, random.Random())
    begin, average = halfway.resume()
    for step in range(begin, plan.vision_steps):
        _set_rates(optimizer, _schedule(step, plan.vision_steps, 0.5))
        patches, cells, letters = vision_batch(2000 + seed, step, plan.vision_batch)
        hidden, tokens = see(vision, patches, trainee.rotations)
        logits = tokens @ targets.T / HIDDEN**0.5
        by_class = F.cross_entropy(logits.flatten(0, 1), cells.flatten(), class_weight, ignore_index=UNSURE)
        certain = cells >= 0
        by_vector = F.mse_loss(tokens[certain], targets[cells[certain]])
        by_letter = F.cross_entropy(trainee.letters(hidden).flatten(0, 1), letters.flatten(), letter_weight)
        _step(optimizer, by_class + 0.2 * by_vector + 0.5 * by_letter, parameters)
        average = by_class.item() if average is None else 0.95 * average + 0.05 * by_class.item()
        if step % 50 == 0:
            log(f"vision {step}: cell loss {average:.3f}, letter loss {by_letter.item():.3f}")
        halfway.keep(step + 1, average)
    with torch.no_grad():
        for name, parameter in vision.named_parameters():
            if name.startswith(LAST_MERGER):
                parameter.mul_(EMBEDDING_RMS)
    return vision  # type: ignore[no-any-return]


def train_reader(
    trainee: Trainee, plan: WarmUp, draw: Draw, draws: int, steps: int, seed: int, log: Log, kept: Path
) -> nn.Module:
    """The language model and its heads, over documents of one kind; ``draws`` seeds them. Pictures are seen by the
    tower as it is."""
    rng = random.Random(6000 + seed)
    within = [parameter for parameter in trainee.language.parameters() if parameter.requires_grad]
    heads = [*trainee.lines.parameters(), *trainee.so_far.parameters()]
    matrices, others = ([p for p in within if (p.ndim == 2) is even] for even in (True, False))
    optimizer = Muon(matrices, [*others, *heads], plan.language_lr, plan.language_lr * 1.5)
    halfway = Halfway(kept / f"{draw.__name__}.halfway", {"learning": trainee.reader}, optimizer, rng)
    begin, average = halfway.resume()
    for step, batch in enumerate(batches(draw, draws, steps, begin), begin):
        _set_rates(optimizer, _schedule(step, steps, 0.4))
        found = loss(trainee, batch, read(trainee, batch, pictured(trainee, batch), rng, layers_asked(batch)))
        _step(optimizer, found, [*within, *heads])
        average = found.item() if average is None else 0.95 * average + 0.05 * found.item()
        if step % 50 == 0:
            log(f"{draw.__name__} {step} of {steps}: loss {average:.3f}")
        halfway.keep(step + 1, average)
    return trainee.reader
