"""Settings files of the trainer: YAML, checked whole before anything is paid for."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from guardtrace_proxy.policy.errors import SettingsError
from guardtrace_proxy.policy.yaml_file import BadYaml, problems_of, read_yaml


class Settings(BaseModel):
    """A section of a settings file; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


AnySettings = TypeVar("AnySettings", bound=BaseModel)


def read_settings(path: Path, type: type[AnySettings]) -> AnySettings:
    """A settings file as ``type``.

    Raises:
        SettingsError: all that is wrong with it, with file, line and key.
    """
    try:
        file = read_yaml(path)
        return type.model_validate(file.content)
    except BadYaml as error:
        raise SettingsError([error.problem]) from None
    except ValidationError as error:
        raise SettingsError(problems_of(error, type, file)) from None
