"""The policy schema: what a tenant's YAML may say, and the effective policy that the gate follows.

Unknown keys, wrong types and impossible values are errors.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class Mode(str, Enum):
    """What a phase's text waits for."""

    HOLD = "hold"
    """For its verdict."""
    LAG = "lag"
    """For nothing, as long as no more than ``max_lag`` tokens are ahead of the verdict."""
    WITHHOLD = "withhold"
    """It never leaves; its verdicts are recorded."""
    MONITOR = "monitor"
    """For nothing; its verdicts are recorded."""


class Action(str, Enum):
    """What is done about a level, from mild to severe."""

    PASS = "pass"
    FLAG = "flag"
    REDACT = "redact"
    CUT = "cut"

    @property
    def severity(self) -> int:
        """0 for the mildest."""
        return list(Action).index(self)


class CutShape(str, Enum):
    """How a cut looks to a client."""

    CONTENT_FILTER = "content_filter"
    REFUSAL = "refusal"
    ERROR = "error"


class ReasoningField(str, Enum):
    """The field that carries reasoning to the client."""

    AS_IS = "as_is"
    REASONING = "reasoning"
    REASONING_CONTENT = "reasoning_content"
    STRIP = "strip"


class OnAuditorFailure(str, Enum):
    """What becomes of text that the auditor couldn't judge."""

    CUT = "cut"
    HOLD = "hold"
    RELEASE = "release"


class Unit(str, Enum):
    """What a chunk is counted in."""

    TOKENS = "tokens"
    SENTENCES = "sentences"


MOST = 2**30 - 1
"""The highest whole number: floats count with it, and the kernel takes twice so many milliseconds."""


class Settings(BaseModel):
    """The base of all sections: unknown keys are errors, types aren't bent, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


Threshold = Annotated[float, Field(gt=0, le=1)]
Message = Annotated[str, Field(min_length=1, max_length=2000)]


class Boundary(Settings):
    """When a chunk is full. Sizes are in ``unit``; ``max_hold_ms`` bounds how long a token waits for its chunk."""

    unit: Unit = Field(Unit.TOKENS, strict=False)
    first: int = Field(16, ge=1, le=MOST)
    growth: float = Field(2.0, ge=1)
    max: int = Field(128, ge=1, le=MOST)
    max_hold_ms: int = Field(500, ge=1, le=MOST)


class Thresholds(Settings):
    """P(0.5) + P(1) and P(1) from which on a level counts."""

    potentially_harmful: Threshold = 0.5
    harmful: Threshold = 0.5

    @property
    def least(self) -> float:
        """The lower of both: no P(0.5) + P(1) below it passes either test."""
        return min(self.potentially_harmful, self.harmful)


class Actions(Settings):
    """What is done about each level."""

    potentially_harmful: Action = Field(Action.REDACT, strict=False)
    harmful: Action = Field(Action.CUT, strict=False)


class PhaseActions(Settings):
    """A phase's own actions, where they differ from the policy's."""

    potentially_harmful: Action | None = Field(None, strict=False)
    harmful: Action | None = Field(None, strict=False)


class PhaseSettings(Settings):
    """How thinking or answer is guarded. ``max_lag`` is in tokens, for mode ``lag``."""

    mode: Mode = Field(Mode.HOLD, strict=False)
    max_lag: int = Field(64, ge=1, le=MOST)
    actions: PhaseActions = PhaseActions()


class AnswerSettings(PhaseSettings):
    """How the answer is guarded."""

    @field_validator("mode")
    @classmethod
    def _is_shown(cls, mode: Mode) -> Mode:
        if mode is Mode.WITHHOLD:
            raise ValueError(
                "withhold is for thinking, since an answer is there to be read; expected hold, lag or monitor"
            )
        return mode


class Messages(Settings):
    """What a client reads in place of what it doesn't get."""

    cut: Message = "This response was stopped by policy."
    auditor_failure: Message = "This response was stopped because it could not be checked."
    redaction: Message = "[withheld by policy]"


class DecisionSettings(Settings):
    """How many hits in a row it takes."""

    confirmations: int = Field(1, ge=1, le=MOST)


class RedactionSettings(Settings):
    """How much of a flagged chunk is redacted."""

    localize: bool = False


class Expose(Settings):
    """What clients are told of the guard."""

    object: bool = True
    headers: bool = True


class PhaseRules(NamedTuple):
    """A phase's mode, and its actions with the policy's own where it has none."""

    mode: Mode
    max_lag: int
    actions: Actions


class Policy(Settings):
    """An effective policy: every value is present."""

    version: Literal[1]
    extends: str | None = None
    thinking: PhaseSettings = PhaseSettings()
    answer: AnswerSettings = AnswerSettings()
    boundary: Boundary = Boundary()
    thresholds: Thresholds = Thresholds()
    actions: Actions = Actions()
    messages: Messages = Messages()
    cut_shape: CutShape = Field(CutShape.CONTENT_FILTER, strict=False)
    reasoning_field: ReasoningField = Field(ReasoningField.AS_IS, strict=False)
    on_auditor_failure: OnAuditorFailure = Field(OnAuditorFailure.CUT, strict=False)
    hold_limit_ms: int = Field(30_000, ge=0, le=MOST)
    decision: DecisionSettings = DecisionSettings()
    redaction: RedactionSettings = RedactionSettings()
    expose: Expose = Expose()

    def phase(self, name: str) -> PhaseRules:
        """The rules for ``thinking`` or ``answering``."""
        settings = self.thinking if name == "thinking" else self.answer
        own: dict[str, Any] = {key: value for key, value in settings.actions if value is not None}
        return PhaseRules(settings.mode, settings.max_lag, self.actions.model_copy(update=own))

    @property
    def thinking_goes(self) -> ReasoningField:
        """Where clients find the thinking: ``strip`` as well where it is withheld."""
        return ReasoningField.STRIP if self.thinking.mode is Mode.WITHHOLD else self.reasoning_field

    @property
    def thinking_is_unseen(self) -> bool:
        """Whether the answer is judged without the thinking: its reader doesn't see it, or the operator doesn't act
        on it."""
        return self.thinking.mode is Mode.MONITOR or self.thinking_goes is ReasoningField.STRIP

    @model_validator(mode="after")
    def _sizes_fit(self) -> Policy:
        if self.boundary.first > self.boundary.max:
            raise ValueError("boundary.first must not be above boundary.max")
        return self
