"""A small checkpoint of the real architecture: random weights, byte-level BPE, Qwen's control tokens.

Also used by other rooms' tests: ``make_checkpoint(folder)``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
)

from guardtrace_proxy.auditor.processor import ImageOnlyProcessor
from guardtrace_proxy.auditor.prompt import SYSTEM_PROMPT

CONTROL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
CHAT_TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message['role'] + '\n' }}"
    "{%- if message['content'] is string %}{{- message['content'] }}{%- else %}"
    "{%- for part in message['content'] %}{%- if part['type'] == 'image' %}"
    "{{- '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- elif 'text' in part %}{{- part['text'] }}{%- endif %}"
    "{%- endfor %}{%- endif %}{{- '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CORPUS = [
    SYSTEM_PROMPT,
    "system user assistant Current Task Query: Current Task Thinking: Current Task Cleaned Response:",
    "“Analysis”: The request is harmless and so is the thinking.\n“Judgment”: 0",
    "“Judgment”: 0.5\n“Judgment”: 1",
]


def make_tokenizer(vocabulary: int = 600) -> PreTrainedTokenizerFast:
    """Byte-level BPE with Qwen's way of splitting words, trained on a few lines."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(CONTROL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(CONTROL[1:]),
        model_max_length=8192,
    )


def make_processor() -> ImageOnlyProcessor:
    return ImageOnlyProcessor(
        image_processor=Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=112 * 112),
        tokenizer=make_tokenizer(),
        chat_template=CHAT_TEMPLATE,
    )


def make_model(processor: ImageOnlyProcessor, seed: int = 0) -> Qwen2_5_VLForConditionalGeneration:
    """Two layers each of vision and language; random weights, the same for the same seed."""
    tokenizer = processor.tokenizer
    control = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad")}
    ends = {
        "bos_token_id": tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        "eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>"),
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 8192,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
            **ends,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": 64,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [0],
        },
        image_token_id=control["image_pad"],
        video_token_id=control["video_pad"],
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        tie_word_embeddings=True,
        **ends,
    )
    torch.manual_seed(seed)
    return Qwen2_5_VLForConditionalGeneration(config)


def teach(
    model: Qwen2_5_VLForConditionalGeneration, processor: ImageOnlyProcessor, reply: str, steps: int = 200
) -> None:
    """Train the model to write ``reply`` after whatever prompt, and its number after ``“Judgment”: ``."""
    tokenizer = processor.tokenizer
    generator = torch.Generator().manual_seed(0)
    bare = reply[reply.rindex("“Judgment”") :]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(steps):
        length = int(torch.randint(8, 400, (), generator=generator))
        noise = torch.randint(len(CONTROL), len(tokenizer), (length,), generator=generator).tolist()
        written = tokenizer(f"{bare if step % 4 == 3 else reply}<|im_end|>")["input_ids"]
        prompt = noise + tokenizer("<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
        given = len(prompt) + (len(tokenizer("“Judgment”: ")["input_ids"]) if step % 4 == 3 else 0)
        ids = torch.tensor([prompt + written])
        labels = ids.masked_fill(torch.arange(ids.shape[1]) < given, -100)
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def make_checkpoint(
    folder: Path, *, seed: int = 0, settings: dict[str, object] | None = None, reply: str | None = None
) -> Path:
    """Write a checkpoint; ``settings`` go to ``guardtrace.json``, ``reply`` is what it is taught to write."""
    processor = make_processor()
    model = make_model(processor, seed)
    if reply is not None:
        teach(model, processor, reply)
    model.to(torch.bfloat16).save_pretrained(folder)
    processor.save_pretrained(folder)
    if settings is not None:
        (folder / "guardtrace.json").write_text(json.dumps(settings), "utf-8")
    return folder


def as_published(folder: Path) -> Path:
    """Rewrite a checkpoint in the published model's layout: preprocessor_config.json, chat_template.json."""
    settings = json.loads((folder / "processor_config.json").read_text("utf-8"))["image_processor"]
    (folder / "processor_config.json").unlink()
    settings.pop("size")
    settings.update(
        min_pixels=28 * 28,
        max_pixels=112 * 112,
        processor_class="Qwen2_5_VLProcessor",
        image_processor_type="Qwen2VLImageProcessor",
    )
    (folder / "preprocessor_config.json").write_text(json.dumps(settings), "utf-8")
    template = folder / "chat_template.jinja"
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template.read_text("utf-8")}), "utf-8")
    template.unlink()
    path = folder / "tokenizer_config.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text("utf-8")), "processor_class": "Qwen2_5_VLProcessor"}), "utf-8"
    )
    return folder


def _changed(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")


def _tokenizer_alone(folder: Path) -> None:
    for path in folder.iterdir():
        if not path.name.startswith(("tokenizer", "special_tokens", "chat_template")):
            path.unlink()


def _another_architecture(folder: Path) -> None:
    _changed(folder / "config.json", model_type="llama", architectures=["LlamaForCausalLM"])


def _weights(folder: Path, change: Callable[[str, torch.Tensor], torch.Tensor | None]) -> None:
    weights = load_file(folder / "model.safetensors")
    changed = {name: change(name, weight) for name, weight in weights.items()}
    kept = {name: weight for name, weight in changed.items() if weight is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def _weights_missing(folder: Path) -> None:
    _weights(folder, lambda name, weight: None if "layers.1." in name else weight)


def _weights_not_numbers(folder: Path) -> None:
    _weights(folder, lambda name, weight: weight * float("nan") if "layers.1.mlp" in name else weight)


def _blind(folder: Path) -> None:
    """Its images become nothing, however many tokens they take."""
    _weights(folder, lambda name, weight: weight * 0 if "merger" in name else weight)


def _labels_in_pieces(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace("0", "zero")])
    tokenizer.save(str(folder / "tokenizer.json"))


def _more_tokens_than_embeddings(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([f"extra{number}" for number in range(9)])
    tokenizer.save(str(folder / "tokenizer.json"))


def _template_without_images(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text("utf-8").replace("<|image_pad|>", ""), "utf-8")


def _processor(folder: Path, **changes: object) -> None:
    path = folder / "processor_config.json"
    settings = json.loads(path.read_text("utf-8"))["image_processor"]
    _changed(path, image_processor={**settings, **changes})


BROKEN: dict[str, Callable[[Path], None]] = {
    "tokenizer alone": _tokenizer_alone,
    "another architecture": _another_architecture,
    "weights missing": _weights_missing,
    "weights not numbers": _weights_not_numbers,
    "blind": _blind,
    "labels in pieces": _labels_in_pieces,
    "more tokens than embeddings": _more_tokens_than_embeddings,
    "template without images": _template_without_images,
    "another merge size": lambda folder: _processor(folder, merge_size=4),
    "another patch size": lambda folder: _processor(folder, patch_size=16),
    "another image token": lambda folder: _changed(folder / "config.json", image_token_id=7),
}
"""What can be wrong with a whole checkpoint, each done to a copy of one."""
