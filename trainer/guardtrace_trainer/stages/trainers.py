"""TRL's trainers as these stages use them: own order of rows, whole checkpoints, nothing cut, nothing sent anywhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import PrinterCallback, Qwen2_5_VLForConditionalGeneration, TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from guardtrace_trainer.muon import Muon
from guardtrace_trainer.stages.answers import answers_only
from guardtrace_trainer.stages.batches import Images, LikeLengths, PairCollator, SftCollator, as_dataset
from guardtrace_trainer.stages.encode import Example
from guardtrace_trainer.stages.folders import load
from guardtrace_trainer.stages.settings import DpoSettings, Lora, SftSettings, StageError, Tuning

Log = Callable[[str], None]
LANGUAGE_LAYERS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
VISION_LAYERS = r".*visual.*\.(qkv|proj|gate_proj|up_proj|down_proj|mlp\.0|mlp\.2)"


class _Ours:
    """Rows in the order of :class:`LikeLengths`, checkpoints that are read back, and Muon where it is wanted."""

    settings: Tuning
    optimizer: Any
    lengths: Sequence[int]
    args: Any
    model: Any
    is_fsdp_enabled: bool
    _order: LikeLengths

    def _get_train_sampler(self, train_dataset: Any = None) -> LikeLengths:
        args = self.args
        rows = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        self._order = LikeLengths(self.lengths, rows, args.seed)
        return self._order

    def get_train_dataloader(self) -> Any:
        """The loader of a resumed training is wrapped once more, and with several processes the trainer's word of the
        epoch doesn't get through to the sampler any longer (transformers 5.24, accelerate 1.15): this takes it there.
        """
        loader = super().get_train_dataloader()  # type: ignore[misc, unused-ignore]
        loader.batch_sampler.set_epoch = self._order.set_epoch
        return loader

    def create_optimizer(self, model: Any = None) -> Any:
        """Muon is ours: transformers has none."""
        if self.settings.optimizer != "muon" or self.optimizer is not None:
            return super().create_optimizer(model)  # type: ignore[misc, unused-ignore]
        if self.is_fsdp_enabled:
            raise StageError("optimizer: muon steps whole matrices, which FSDP cuts into pieces; take adamw_torch")
        network = self.model if model is None else model
        embeddings = network.get_input_embeddings().weight
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        even = [parameter.ndim == 2 and parameter is not embeddings for parameter in trained]
        matrices, others = (
            [p for p, is_even in zip(trained, even, strict=True) if is_even is kind] for kind in (True, False)
        )
        lr = self.settings.learning_rate
        self.optimizer = Muon(matrices, others, lr, lr, self.settings.weight_decay)
        return self.optimizer

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """A Qwen2.5-VL checkpoint names its weights otherwise than the network does: the trainer's own reading finds
        none of them, says so in a log line and goes on from the base (transformers 5.24)."""
        folder = Path(resume_from_checkpoint)
        if self.is_fsdp_enabled or (folder / "adapter_config.json").exists():
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc, unused-ignore]
            return
        self.model.load_state_dict(load(folder, torch.float32).state_dict())

    def _send_telemetry(self) -> None:
        """TRL tells the hub which model is trained on which GPU; what is trained here is nobody's business."""


class Sft(_Ours, SFTTrainer):  # type: ignore[misc, unused-ignore]
    """TRL's SFTTrainer."""


class Dpo(_Ours, DPOTrainer):  # type: ignore[misc, unused-ignore]
    """TRL's DPOTrainer."""


class Progress(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Says how a training goes on, in a line."""

    def __init__(self, log: Log) -> None:
        self._log = log

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Called by the trainer every ``logging_steps``."""
        if not state.is_world_process_zero or logs is None or "loss" not in logs:
            return
        shown = {name: float(logs[name]) for name in ("loss", "rewards/accuracies", "rewards/margins") if name in logs}
        figures = ", ".join(f"{name} {value:.4f}" for name, value in shown.items())
        self._log(f"step {state.global_step} of {state.max_steps}: {figures}")


def on_gpu() -> bool:
    """Whether training runs on a GPU."""
    return torch.cuda.is_available()


def uses_bf16(settings: Tuning) -> bool:
    """Whether products are computed in bfloat16."""
    return on_gpu() if settings.bf16 is None else settings.bf16


def arguments(settings: Tuning, folder: Path, seed: int) -> dict[str, Any]:
    """TRL's arguments that both kinds of training share. ``max_length`` is None: lengths were checked before."""
    gpu = on_gpu()
    checkpoint = gpu if settings.gradient_checkpointing is None else settings.gradient_checkpointing
    return {
        "output_dir": str(folder),
        "num_train_epochs": settings.epochs,
        "max_steps": settings.max_steps or -1,
        "per_device_train_batch_size": settings.batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.schedule,
        "warmup_steps": settings.warmup_share,  # a float below 1 is a share
        "optim": "adamw_torch" if settings.optimizer == "muon" else settings.optimizer,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "bf16": uses_bf16(settings),
        "gradient_checkpointing": checkpoint,
        "seed": seed,
        "data_seed": seed,
        "use_cpu": not gpu,
        "save_strategy": "no" if settings.save_steps is None else "steps",
        "save_steps": settings.save_steps or 500,
        "save_total_limit": 1,
        "logging_steps": settings.logging_steps,
        "report_to": settings.report_to or "none",
        "dataloader_num_workers": settings.workers,
        "dataloader_pin_memory": gpu,
        "max_length": None,
        "remove_unused_columns": False,
        "disable_tqdm": True,
    }


def lora_config(lora: Lora, *, vision: bool) -> LoraConfig:
    """Adapters in all linear layers of the language model, and of the vision tower where it is trained."""
    layers = f"({LANGUAGE_LAYERS})|({VISION_LAYERS})" if vision else LANGUAGE_LAYERS
    return LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=layers, task_type="CAUSAL_LM"
    )


def set_trainable(network: Qwen2_5_VLForConditionalGeneration, settings: Tuning) -> None:
    """What is trained: see :class:`Tuning`. With adapters the base stays frozen, and TRL adds them. StageError where no
    layer would be left."""
    layers = network.model.language_model.layers
    if settings.freeze_layers >= len(layers):
        raise StageError(f"freeze_layers: the base has {len(layers)} layers, of which at least one has to be trained")
    network.requires_grad_(settings.lora is None)
    if settings.freeze_vision:
        network.model.visual.requires_grad_(False)
    if settings.freeze_embeddings:
        network.get_input_embeddings().requires_grad_(False)
    layers[: settings.freeze_layers].requires_grad_(False)


def sft_trainer(
    network: Qwen2_5_VLForConditionalGeneration,
    examples: Sequence[Example],
    images: Images,
    settings: SftSettings,
    *,
    folder: Path,
    seed: int,
    log: Log,
) -> Sft:
    """Stage 1 over TRL: negative log-likelihood of the annotation's tokens, all tokens of a step alike."""
    set_trainable(network, settings)
    trainer = Sft(
        model=network,
        args=SFTConfig(completion_only_loss=True, **arguments(settings, folder, seed)),
        data_collator=SftCollator(examples, images),
        train_dataset=as_dataset(examples),
        processing_class=images.encoder.processor,
        peft_config=None if settings.lora is None else lora_config(settings.lora, vision=not settings.freeze_vision),
        callbacks=[Progress(log)],
    )
    _prepare(trainer, examples, settings)
    return trainer


def dpo_trainer(
    network: Qwen2_5_VLForConditionalGeneration,
    reference: Qwen2_5_VLForConditionalGeneration | None,
    examples: Sequence[Example],
    images: Images,
    settings: DpoSettings,
    *,
    folder: Path,
    seed: int,
    log: Log,
) -> Dpo:
    """Stages 2 and 3 over TRL: -log σ(β (log-ratio of chosen - log-ratio of rejected)), ratios against ``reference``,
    which is frozen. With adapters it is None: then the network itself is the reference, its adapters switched off."""
    if (reference is None) != (settings.lora is not None):
        raise ValueError("a reference is needed without lora, and is the base itself with it")
    set_trainable(network, settings)
    both = settings.sft_weight > 0
    trainer = Dpo(
        model=network,
        ref_model=reference,
        args=DPOConfig(
            beta=settings.beta,
            loss_type=["sigmoid", "sft"] if both else ["sigmoid"],
            loss_weights=[1.0, settings.sft_weight] if both else None,
            # TRL's default is to set every dropout to 0; a Qwen2.5-VL has no such modules but those of its adapters
            disable_dropout=settings.lora is None or not settings.lora.dropout,
            **arguments(settings, folder, seed),
        ),
        data_collator=PairCollator(examples, images, pack=not on_gpu()),
        train_dataset=as_dataset(examples),
        processing_class=images.encoder.processor,
        peft_config=None if settings.lora is None else lora_config(settings.lora, vision=not settings.freeze_vision),
        callbacks=[Progress(log)],
    )
    if reference is not None and not on_gpu():
        answers_only(reference, bf16=uses_bf16(settings), logged=False)
    _prepare(trainer, examples, settings)
    return trainer


def _prepare(trainer: Any, examples: Sequence[Example], settings: Tuning) -> None:
    trainer.remove_callback(PrinterCallback)  # Progress says it
    trainer.settings = settings
    trainer.lengths = [example.length for example in examples]
    if not on_gpu():
        network = trainer.model.get_base_model() if settings.lora is not None else trainer.model
        answers_only(network, bf16=uses_bf16(settings))


def last_checkpoint(folder: Path) -> Path | None:
    """The last whole checkpoint in a stage's folder; one that a crash left half-written doesn't count."""
    whole: dict[int, Path] = {}
    for path in folder.glob("checkpoint-*"):
        try:
            state = json.loads((path / "trainer_state.json").read_text("utf-8"))  # written last
        except (OSError, ValueError):
            continue
        whole[int(state["global_step"])] = path
    return whole[max(whole)] if whole else None
