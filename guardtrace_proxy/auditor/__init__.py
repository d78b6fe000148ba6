"""The auditor: how a guard model is asked about a partial trace, and how its reply is read.

- What every backend needs, without torch: ``protocol``, ``prompt``, ``quoting`` with ``lookalikes``, ``window``,
  ``context``, ``labels``, ``calibration``, ``reply`` with ``quotations``, ``cascade``, ``published``, ``salts``,
  ``selftest`` with ``selftest_audits``.
- Before an auditor of any backend: ``breaker``, and ``replicas`` with ``health``.
- Behind a server, without torch: ``openai`` with ``guard_server``, ``abilities``, ``served_prompt``, ``served_labels``,
  ``seen_images``; ``selftest_served``.
- In this process, with the extra ``local``: ``transformers`` with ``worker``, ``inference``, ``packed``, ``reading``,
  ``kept``; ``checkpoint`` with ``foreign``, ``processor``, ``layout`` with ``growing``, ``selftest_checkpoint``.
- On vLLM's engine, with the extra ``vllm``: ``vllm``, with ``processor``, ``layout`` and ``checkpoint`` from above.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from guardtrace_proxy.auditor.protocol import Auditor, AuditorSettingsError
from guardtrace_proxy.auditor.published import for_model

BUILT_IN = "builtin:nano"
"""The checkpoint that ships in this package."""


def source_of(model: str) -> str:
    """The folder of ``builtin:nano``; a folder or a hub id as it is."""
    return str(Path(__file__).parent / "nano") if model == BUILT_IN else model


def no_such_built_in(model: str) -> str | None:
    """What is wrong with the name of a model that runs in this process: it is taken for a built-in one, and is none."""
    if model == BUILT_IN or not model.startswith("builtin:"):
        return None
    return f"there is no {model}: the only built-in is {BUILT_IN}"


def make_auditor(
    backend: str,
    *,
    model: str,
    base_url: str | Sequence[str] | None = None,
    ca_file: str | None = None,
    api_key: str | None = None,
    depth: str = "annotate",
    timeout_ms: int = 5000,
    annotate_max_tokens: int = 512,
    max_context: int | None = None,
    kv_cache_bytes: int | None = None,
    system_prompt: str | None = None,
) -> Auditor:
    """The auditor that the settings name; nothing is loaded before its ``start``.

    Args:
        backend: ``openai`` (any OpenAI-compatible server), ``transformers`` or ``vllm`` (in this process).
        model: the server's model name; or ``builtin:nano``, a folder or a hub id.
        base_url: the server's, ending in ``/v1``, or those of several that serve the same model; ``openai`` only.
        ca_file: PEM with the authorities whose certificates it may have, certifi's if None; ``openai`` only.
        api_key: sent as a bearer token; ``openai`` only.
        depth: how audits are asked for: ``label``, ``annotate`` or ``cascade``, which needs both.
        timeout_ms: one audit's time. Callers keep to it themselves; here it bounds the wait for a connection.
        annotate_max_tokens: tokens that a reply may have.
        max_context: tokens of prompt and reply, 8192 if None; never more than the checkpoint's own.
        kv_cache_bytes: of all open sessions together, 4 GiB if None; ``transformers`` only.
        system_prompt: in place of the checkpoint's own, the published one (where it was fetched) or ours.

    Raises:
        AuditorSettingsError: a setting can't be used, with what to do about it.
    """
    _check(backend, depth, base_url, model)
    system_prompt, warnings = for_model(model, system_prompt, depth)
    if backend == "openai":
        from guardtrace_proxy.auditor.openai import OpenAIAuditor
        from guardtrace_proxy.auditor.replicas import ReplicatedAuditor

        assert base_url is not None
        urls = [base_url] if isinstance(base_url, str) else base_url
        replicas = {
            url: OpenAIAuditor(
                url,
                model,
                ca_file=ca_file,
                api_key=api_key,
                depth=depth,
                timeout_ms=timeout_ms,
                annotate_max_tokens=annotate_max_tokens,
                max_context=max_context,
                system_prompt=system_prompt,
                warnings=warnings,
            )
            for url in urls
        }
        return ReplicatedAuditor(replicas) if len(replicas) > 1 else replicas[urls[0]]
    if backend == "vllm":
        try:
            from guardtrace_proxy.auditor.vllm import VllmAuditor
        except ImportError as error:
            raise AuditorSettingsError(_not_installed("vllm", error, "vllm")) from error
        return VllmAuditor(
            model,
            annotate_max_tokens=annotate_max_tokens,
            max_context=max_context,
            system_prompt=system_prompt,
            warnings=warnings,
        )
    try:
        from guardtrace_proxy.auditor.transformers import TransformersAuditor
    except ImportError as error:
        raise AuditorSettingsError(_not_installed("transformers", error, "local")) from error
    return TransformersAuditor(
        model,
        annotate_max_tokens=annotate_max_tokens,
        max_context=max_context,
        kv_cache_bytes=kv_cache_bytes,
        system_prompt=system_prompt,
        warnings=warnings,
    )


def _not_installed(backend: str, error: ImportError, extra: str) -> str:
    missing = error.name or "torch"
    remedy = f"pip install '.[{extra}]' in a checkout of guardtrace-proxy"
    return f"auditor.backend: {backend} needs {missing}, which isn't installed: {remedy}"


def _check(backend: str, depth: str, base_url: str | Sequence[str] | None, model: str) -> None:
    if backend not in ("openai", "transformers", "vllm"):
        raise AuditorSettingsError(f"auditor.backend: {backend!r} is none of openai, transformers, vllm")
    if depth not in ("label", "annotate", "cascade"):
        raise AuditorSettingsError(f"auditor.depth: {depth!r} is none of label, annotate, cascade")
    if backend == "openai" and not base_url:
        raise AuditorSettingsError("auditor.base_url: the openai backend needs the URL of a server, ending in /v1")
    if backend != "openai" and (problem := no_such_built_in(model)) is not None:
        raise AuditorSettingsError(f"auditor.model: {problem}")
