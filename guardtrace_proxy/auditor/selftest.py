"""A self-test of an auditor before it serves: is it whole, does it see images, can its replies be read, how fast is it?

Its verdicts are shown, never held against it, since a guard may judge otherwise. A reply that can't be read fails it.
"""

from __future__ import annotations

from guardtrace_proxy.auditor import make_auditor
from guardtrace_proxy.auditor.selftest_audits import Report


async def self_test(
    model: str,
    base_url: str | None,
    api_key: str | None,
    seconds: float,
    ca_file: str | None = None,
    max_context: int | None = None,
) -> Report:
    """Test a checkpoint in this process, or, with ``base_url``, a served model; ``seconds`` a measurement.

    Raises:
        AuditorSettingsError, BadCaFile, SelfTestFailed: the first thing that is wrong.
    """
    if base_url is None:
        made = make_auditor("transformers", model=model, max_context=max_context)  # says so where there is no torch
        from guardtrace_proxy.auditor.selftest_checkpoint import report_on_checkpoint

        return await report_on_checkpoint(made, model, seconds)
    from guardtrace_proxy.auditor.selftest_served import report_on_served

    return await report_on_served(model, base_url, api_key, seconds, ca_file, max_context)
