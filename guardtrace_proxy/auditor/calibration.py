"""What a checkpoint's label reads are worth: ``calibration.json`` beside its weights.

``guardtrace-train sweep`` writes it.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from guardtrace_proxy.auditor.protocol import AuditorSettingsError
from guardtrace_proxy.policy.levels import Probabilities

CALIBRATION = "calibration.json"
MOST_ESCALATE_AT = 0.5
LEAST_TEMPERATURE, MOST_TEMPERATURE = 0.1, 10.0


class Calibration(BaseModel):
    """How to take a checkpoint's label reads.

    ``temperature`` scales them (see :func:`tempered`); a cascade annotates from the label risk ``escalate_at`` on. The
    rest says what came of it on so many other held-out ``traces``: of the unsafe ones the share ``recall`` escalates,
    of the safe ones ``safe_escalated``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    temperature: float = Field(ge=LEAST_TEMPERATURE, le=MOST_TEMPERATURE)
    escalate_at: float = Field(gt=0, le=MOST_ESCALATE_AT)
    traces: int | None = Field(None, ge=1)
    recall: float | None = Field(None, ge=0, le=1)
    safe_escalated: float | None = Field(None, ge=0, le=1)


def read_calibration(content: bytes, source: str) -> Calibration:
    """Read the file; ``source`` is the checkpoint that carries it.

    Raises:
        AuditorSettingsError: it isn't JSON, or a key or value isn't one of those above.
    """
    try:
        return Calibration.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, (CALIBRATION, *first["loc"])))
        raise AuditorSettingsError(
            f"{source}: {place}: {first['msg'][0].lower()}{first['msg'][1:]}. "
            "Remove the file, or write it again with `guardtrace-train sweep`"
        ) from error


def tempered(probabilities: Probabilities, temperature: float) -> Probabilities:
    """Each probability to the power of 1 / temperature, renormalised: above 1 flatter, below 1 sharper."""
    shares = (probabilities.safe, probabilities.potentially_harmful, probabilities.harmful)
    most = max(shares)
    raised = [(share / most) ** (1 / temperature) for share in shares]
    return Probabilities(*(share / sum(raised) for share in raised))
