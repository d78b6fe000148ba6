"""Opening a Qwen2.5-VL checkpoint: the published 3B, one's own, or the one in this package."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError
from transformers import AutoConfig, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.utils import logging as hub_logging

from guardtrace_proxy.auditor import source_of
from guardtrace_proxy.auditor.calibration import CALIBRATION, Calibration, read_calibration
from guardtrace_proxy.auditor.foreign import file_beside, refuse_foreign
from guardtrace_proxy.auditor.hub import hub_asked_once
from guardtrace_proxy.auditor.processor import ImageOnlyProcessor, load_processor
from guardtrace_proxy.auditor.protocol import AuditorSettingsError

READ_BYTES = 1 << 20
OWN_SETTINGS = "guardtrace.json"
"""What a checkpoint says of itself: ``system_prompt``, ``max_context`` (tokens), ``purpose``."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model ready to run, with its processor and what its folder says of itself."""

    model: Qwen2_5_VLForConditionalGeneration
    processor: ImageOnlyProcessor
    system_prompt: str | None = None
    max_context: int | None = None
    purpose: str | None = None
    calibration: Calibration | None = None
    end_ids: frozenset[int] = field(default=frozenset())

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device  # type: ignore[no-any-return, unused-ignore]


def load_checkpoint(model: str) -> Checkpoint:
    """Load ``builtin:nano``, a folder or a hub id: float32 on a CPU, bfloat16 on a GPU, safetensors only.

    Raises:
        AuditorSettingsError: it isn't there, or isn't a whole Qwen2.5-VL checkpoint.
    """
    source = source_of(model)
    try:
        with hub_asked_once(source):
            own = own_settings(source)
            calibration = own_calibration(source)
            processor = load_processor(source, local_files_only=constants.HF_HUB_OFFLINE)
            network = load_network(source, torch.bfloat16 if torch.cuda.is_available() else torch.float32)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        problem = _first_line(error)
        if (Path(source).is_absolute() or source.startswith((".", "~"))) and not Path(source).is_dir():
            problem = "there is no such folder"
        raise AuditorSettingsError(
            f"auditor.model: {model} can't be loaded as a Qwen2.5-VL checkpoint: {problem}. Give a hub id, "
            "or a folder with config.json, model.safetensors and the tokenizer's and processor's files"
        ) from error
    network.train(False)
    network.requires_grad_(False)
    if torch.cuda.is_available():
        torch.nn.Module.to(network, "cuda")
    return Checkpoint(
        network,
        processor,
        **own,
        calibration=calibration,
        end_ids=end_ids(network.generation_config, network.config, processor),
    )


def load_network(source: str, dtype: torch.dtype) -> Qwen2_5_VLForConditionalGeneration:
    """The network alone, on the CPU, its parameters in ``dtype`` (to compute in bf16 on a CPU is a hundred times slower
    than in float32).

    Raises:
        OSError, ValueError, TypeError: it isn't there, or isn't whole, or can't be run, or isn't weights alone.
    """
    refuse_foreign(source)
    offline = constants.HF_HUB_OFFLINE
    # without a config, or with weights missing, transformers makes a random model of the default size
    config = AutoConfig.from_pretrained(source, local_files_only=offline, trust_remote_code=False)
    if not isinstance(config, Qwen2_5_VLConfig):
        raise TypeError(f"its model_type is {config.model_type}, expected qwen2_5_vl")
    if set(config.get_text_config().layer_types) != {"full_attention"}:
        raise ValueError("it has layers of sliding-window attention, which aren't supported")
    bars = hub_logging.is_progress_bar_enabled()
    hub_logging.disable_progress_bar()  # two lines of it in the middle of a server's log
    try:
        network, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            source,
            config=config,
            dtype=dtype,
            attn_implementation="sdpa",  # a config may name one that is fetched from the hub and run
            use_safetensors=True,
            local_files_only=offline,
            output_loading_info=True,
        )
    except SafetensorError as error:
        raise ValueError(f"its weights aren't safetensors ({error})") from error
    except ImportError as error:
        raise ValueError(f"it asks for a package that isn't here ({_first_line(error)})") from error
    if bars:
        hub_logging.enable_progress_bar()
    if absent := [*report["missing_keys"], *report["mismatched_keys"]]:
        raise ValueError(f"{len(absent)} weights are missing or of another shape")
    return network  # type: ignore[no-any-return, unused-ignore]


def own_calibration(source: str) -> Calibration | None:
    """How a checkpoint's label reads are calibrated; raises AuditorSettingsError where that can't be read."""
    content = file_beside(source, CALIBRATION)
    return None if content is None else read_calibration(content, source)


def own_settings(source: str) -> dict[str, Any]:
    """What a checkpoint says of itself; raises AuditorSettingsError where that can't be read."""
    content = file_beside(source, OWN_SETTINGS)
    if content is None:
        return {}
    try:
        values = json.loads(content)
        prompt, context, purpose = (values.get(key) for key in ("system_prompt", "max_context", "purpose"))
    except (ValueError, AttributeError) as error:
        raise AuditorSettingsError(f"{source}: {OWN_SETTINGS} must hold one JSON object") from error
    if not isinstance(prompt, str | None) or not isinstance(purpose, str | None):
        raise AuditorSettingsError(f"{source}: system_prompt and purpose in {OWN_SETTINGS} must be texts")
    if context is not None and (not isinstance(context, int) or context < 1):
        raise AuditorSettingsError(f"{source}: max_context in {OWN_SETTINGS} must be a number of tokens")
    return {"system_prompt": prompt, "max_context": context, "purpose": purpose}


def weights_sha256(model: str) -> str | None:
    """The SHA-256 of the weights' file; of several that of what ``sha256sum *.safetensors`` prints. None where there
    are none here."""
    source = source_of(model)
    folder = Path(source)
    if not folder.is_dir():
        try:
            folder = Path(hf_hub_download(source, "config.json", local_files_only=True)).parent
        except (EntryNotFoundError, LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError):
            return None
    sums = [(_sha256_of(path), path.name) for path in sorted(folder.glob("*.safetensors"))]
    if len(sums) < 2:
        return sums[0][0] if sums else None
    return hashlib.sha256("".join(f"{digest}  {name}\n" for digest, name in sums).encode()).hexdigest()


def _sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(READ_BYTES):
            digest.update(data)
    return digest.hexdigest()


def end_ids(generation: Any, config: Any, processor: ImageOnlyProcessor) -> frozenset[int]:
    """Tokens that end a reply, from the generation settings (None without), the config and the tokenizer."""
    found: set[int] = set()
    for settings in (generation, config, processor.tokenizer):
        value = getattr(settings, "eos_token_id", None)
        found.update([value] if isinstance(value, int) else value or [])
    return frozenset(found)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
