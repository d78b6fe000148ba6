"""A faster forward pass for training on a CPU, within TRL.

TRL's trainers ask the model for log-probabilities (``fused_lm_head=True``), not for logits, but off a GPU they project
every token of every prompt onto the vocabulary to throw most of it away. Here only what is learned is projected; a
pair's prompt, which is most of it, is read once; padding at the right needs no mask. The numbers are the same.
"""

from __future__ import annotations

from types import MethodType
from typing import Any, cast

import torch
from transformers import Qwen2_5_VLForConditionalGeneration
from trl.trainer.utils import FusedCausalLMOutput

from guardtrace_trainer.stages.batches import IGNORED


def answers_only(model: Qwen2_5_VLForConditionalGeneration, *, bf16: bool, logged: bool = True) -> None:
    """Have the model answer TRL's requests for log-probabilities this way; all other calls stay as they were.

    ``logged``: whether to add what TRL logs of a model in training.
    """
    before = model.forward

    def forward(self: Any, *args: Any, fused_lm_head: bool = False, **inputs: Any) -> Any:
        if not fused_lm_head:
            return before(*args, **inputs)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return _answers(self, logged, **inputs)

    model.forward = MethodType(forward, model)


def _answers(
    model: Any,
    logged: bool,
    *,
    input_ids: torch.Tensor,
    labels: torch.Tensor,
    position_ids: torch.Tensor | None = None,
    packed_ids: torch.Tensor | None = None,
    packed_positions: torch.Tensor | None = None,
    packed_tail: torch.Tensor | None = None,
    packed_from: torch.Tensor | None = None,
    pixel_values: torch.Tensor | None = None,
    image_grid_thw: torch.Tensor | None = None,
    image_features: torch.Tensor | None = None,
    **_: Any,
) -> FusedCausalLMOutput:
    """Log-probabilities [sequences, length - 1], 0 where nothing is learned, as TRL's own fused head gives them."""
    ids, places = (input_ids, position_ids) if packed_ids is None else (packed_ids, packed_positions)
    embeddings = model.get_input_embeddings()(ids)
    if pixel_values is not None:
        found = model.model.get_image_features(pixel_values, image_grid_thw, return_dict=True)
        image_features = torch.cat(list(found.pooler_output))
    if image_features is not None:
        where = (ids == model.config.image_token_id).unsqueeze(-1)
        embeddings = embeddings.masked_scatter(where, image_features.to(embeddings.dtype))
    hidden = model.model.language_model(
        inputs_embeds=embeddings,
        position_ids=places,
        attention_mask={"full_attention": None if packed_tail is None else _mask(packed_tail)},
        use_cache=False,
    ).last_hidden_state
    wanted = labels[:, 1:] != IGNORED
    sequence, place = wanted.nonzero(as_tuple=True)
    row = sequence % len(ids)  # second tails stand behind all first ones
    states = hidden[row, place if packed_from is None else packed_from[sequence, place]]
    return _scored(model.get_output_embeddings()(states).float(), labels[:, 1:][wanted], wanted, logged)


def _mask(tail: torch.Tensor) -> torch.Tensor:
    """Added to attention's scores, [batch, 1, length, length]: nothing looks ahead, and no tail at another. Padding
    stands at the right, where nobody looks."""
    length = tail.shape[1]
    hidden = (tail[:, None] != 0) & (tail[:, None] != tail[:, :, None])
    hidden |= torch.ones(length, length, dtype=torch.bool, device=tail.device).triu(1)
    return torch.zeros(hidden.shape, device=tail.device).masked_fill_(hidden, float("-inf"))[:, None]


def _scored(logits: torch.Tensor, targets: torch.Tensor, wanted: torch.Tensor, logged: bool) -> FusedCausalLMOutput:
    """``logits`` [learned tokens, vocabulary]; ``wanted`` bool [sequences, length - 1]."""
    log_shares = logits.log_softmax(-1)
    chosen = log_shares.gather(-1, targets[:, None])[:, 0]

    def spread(values: torch.Tensor) -> torch.Tensor:
        return torch.zeros(wanted.shape, dtype=values.dtype, device=values.device).masked_scatter(wanted, values)

    probabilities = spread(chosen)
    output = FusedCausalLMOutput(
        loss=cast(Any, -probabilities.sum() / wanted.sum().clamp(min=1)),
        log_probs=cast(Any, probabilities),
        label_mask=cast(Any, wanted),
    )
    if logged:
        with torch.no_grad():
            output.entropy = spread(-(log_shares.exp() * log_shares).sum(-1))
            output.mean_logits, output.is_top1 = spread(logits.mean(-1)), spread(logits.argmax(-1) == targets)
    return output
