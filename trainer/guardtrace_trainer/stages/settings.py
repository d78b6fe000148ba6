"""What can be set for each stage. The paper (arXiv 2511.20994) publishes none of these values: all are ours."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from guardtrace_trainer.endpoints import Endpoint


class StageError(Exception):
    """A stage can't run as it is set, or on what it was given. The message says what to do."""


class Lora(BaseModel):
    """Low-rank adapters in place of full training; they are merged when the stage ends, so each stage's result is a
    whole checkpoint and the next one's reference."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int = Field(64, ge=1)
    alpha: int = Field(128, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)


class Tuning(BaseModel):
    """What the training stages have in common.

    Trained are all weights (or, with ``lora``, adapters in all linear layers) of the language model; of the vision
    tower and the merger behind it unless ``freeze_vision``; and the token embeddings, which are also the output layer
    where the two are tied, unless ``freeze_embeddings`` (never with ``lora``). Of the language model, the first
    ``freeze_layers`` layers stay as they are: what a base knows there, it keeps.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: float = Field(1.0, gt=0, allow_inf_nan=False)
    max_steps: int | None = Field(None, ge=1)
    """Stops there, whatever ``epochs`` says."""
    batch_size: int = Field(8, ge=1)
    """Rows of one forward pass on one device."""
    gradient_accumulation: int = Field(1, ge=1)
    """Passes before a step: rows of a step = this × ``batch_size`` × devices."""
    learning_rate: float = Field(1e-5, gt=0, lt=1)
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "cosine"
    warmup_share: float = Field(0.03, ge=0, lt=1)
    optimizer: Literal["adamw_torch", "adamw_torch_fused", "adamw_torch_8bit", "paged_adamw_8bit", "muon"] = (
        "adamw_torch"
    )
    """``muon`` is for small networks trained whole; a learning rate that suits AdamW suits it, too."""
    weight_decay: float = Field(0.0, ge=0, lt=1)
    max_grad_norm: float = Field(1.0, gt=0)
    bf16: bool | None = None
    """Products in bfloat16, parameters and optimizer in float32. None: on a GPU. On a CPU it pays only with AMX or
    AVX512-BF16, and is very slow without."""
    gradient_checkpointing: bool | None = None
    """Recompute instead of remember: less memory, about a fifth slower. None: on a GPU."""
    lora: Lora | None = None
    freeze_vision: bool = True
    freeze_embeddings: bool = False
    freeze_layers: int = Field(0, ge=0)
    max_length: int | None = Field(None, ge=64)
    """Tokens of prompt, images and reply together. None: the checkpoint's own context, or 8192."""
    long_traces: Literal["refuse", "drop_middle"] = "refuse"
    """A row that is longer is an error, which lists all of them, or loses the middle of its thinking."""
    system_prompt: str | None = None
    """In place of the base's own, or ours; written into the result, so that it is served with the same."""
    save_steps: int | None = Field(None, ge=1)
    """Steps between checkpoints, of which the last one is kept until the stage is done. None: none."""
    save_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the result. bfloat16 rounds away what a gentle stage changed: take it for the last one."""
    report_to: list[str] = []
    """Passed on to TRL: ``tensorboard``, ``wandb``, ``trackio`` …"""
    logging_steps: int = Field(10, ge=1)
    workers: int = Field(0, ge=0)
    """Processes that read images beside the training."""
    threads: int = Field(1, ge=1)
    """Threads of each process on a CPU. With one, the same seed gives the same weights."""
    processes: int = Field(1, ge=1)
    """On a CPU: processes that train side by side, one a core, each with ``batch_size`` rows of a step. On GPUs it is
    ``accelerate launch`` that starts them."""

    @field_validator("report_to")
    @classmethod
    def _names_trackers(cls, value: list[str]) -> list[str]:
        if {"all", "none"} & set(value):
            raise ValueError("name the trackers; none is an empty list")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Tuning:
        if self.lora is not None and self.freeze_embeddings:
            raise ValueError("freeze_embeddings: with lora the embeddings are frozen anyway; leave it out")
        if self.lora is not None and self.freeze_layers:
            raise ValueError("freeze_layers: adapters go into all layers; leave it out, or train without lora")
        if self.lora is not None and self.optimizer == "muon":
            raise ValueError("optimizer: muon steps whole matrices, never adapters; take an adamw with lora")
        return self


class SftSettings(Tuning):
    """Stage 1: supervised fine-tuning on what all judges agree on."""

    bare_share: float = Field(0.0, ge=0, lt=1)
    """Of all examples, those whose target is the judgment alone, so that the ``label`` depth is trained, too. They come
    on top: each row's annotation stays an example. 0 reproduces the paper."""


class DpoSettings(Tuning):
    """Stages 2 and 3: preference optimisation against the frozen model that the stage starts from."""

    learning_rate: float = Field(1e-6, gt=0, lt=1)
    beta: float = Field(0.1, gt=0, allow_inf_nan=False)
    """β1 of the paper in ``dpo``, β2 in ``ogdpo``."""
    sft_weight: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Weight of the chosen annotation's negative log-likelihood, a token, beside the preference. 0 reproduces the
    paper."""


class MineSettings(BaseModel):
    """Between 2 and 3: where the DPO model and the jury disagree, an oracle decides."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    oracle: Endpoint
    annotate_max_tokens: int = Field(512, ge=16)
    """Tokens of one of the model's own annotations."""
    max_context: int | None = Field(None, ge=256)
    """Of the auditor that re-judges. None: the checkpoint's own, or 8192."""
    concurrency: int = Field(32, ge=1, le=256)
    """Traces that are re-judged side by side: on one core 32 take a sixth of the time of one after another."""
    replay: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Pairs of ``replay.jsonl`` for each one of ``mined.jsonl``: harmless traces that the model judges rightly, so that
    a set of overlooked harm doesn't teach it to allege harm everywhere. 0 reproduces the paper."""
