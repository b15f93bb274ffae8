"""The building blocks of the sections: a field with its description and effect."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field


class Effect(StrEnum):
    """What a change of the field affects."""

    RESULT = "result"
    OUTPUT = "output"
    NONE = "none"


def setting(doc: str, *, effect: Effect = Effect.RESULT, **kwargs: Any) -> Any:
    """A field with its description and effect. Pass `default=` only if it means "off"."""
    return Field(description=doc, json_schema_extra={"effect": effect.value}, **kwargs)


class Section(BaseModel):
    """Base of all sections: frozen, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Beta = Annotated[float, Field(ge=0.0, lt=1.0)]

# What the command and the function `generate` accept.
MAX_IMAGES = 10_000
MAX_SEED = 2**62
MAX_SAMPLING_STEPS = 1000
MAX_GUIDANCE = 100
MAX_STRENGTH = 2
