"""One parameter of a template: what it takes, and where it goes. Pure."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

RANDOM = "random"
"""The default of a whole number that is another one for every job."""

LARGEST_RANDOM = 2**53 - 1
"""Unless a maximum says otherwise: JavaScript reads larger numbers from an answer inexactly."""

MEDIA_TYPES = frozenset({"image", "mask", "video", "audio"})
_SHOWN_CHOICES = 20

_NUMBERS = {"integer": "a whole number", "number": "a number"}
_Bound = Annotated[int | float, Field(allow_inf_nan=False)]


OneLine = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]*$")]
"""Text without control characters."""


class Parameter(BaseModel):
    """A parameter as a template's file declares it."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    input: str | Annotated[list[str], Field(min_length=1)] = Field(
        description="The node's input that it fills, for example `3.seed`; or several of them."
    )
    type: Literal["integer", "number", "string", "boolean", "image", "mask", "video", "audio"] = Field(
        description="What it takes; image, mask, video and audio: a name under UPLOADS_URL, a URL there or a data URI."
    )
    description: OneLine = Field(default="", description="One line for people.")
    default: Any = Field(
        default=None,
        description='Its value when none is given; without a default one must be. `"random"`: any in its range.',
    )
    minimum: _Bound | None = Field(default=None, description="Smallest number it takes.")
    maximum: _Bound | None = Field(default=None, description="Largest number it takes.")
    choices: Annotated[list[str | int | float], Field(min_length=1)] | None = Field(
        default=None, description="The only values it takes."
    )
    max_length: Annotated[int, Field(ge=1)] | None = Field(default=None, description="Most characters of a string.")

    @model_validator(mode="after")
    def _check(self) -> Parameter:
        if problem := self._problem():
            raise PydanticCustomError("parameter", "{problem}", {"problem": problem})
        return self

    @property
    def inputs(self) -> tuple[str, ...]:
        """Every input that it fills."""
        return (self.input,) if isinstance(self.input, str) else tuple(self.input)

    @property
    def required(self) -> bool:
        """Whether a value must be given."""
        return "default" not in self.model_fields_set

    @property
    def random(self) -> bool:
        """Whether each job gets another value unless one is given."""
        return self.type == "integer" and self.default == RANDOM

    @property
    def expected(self) -> str:
        """What it takes, in words."""
        if self.choices is not None:
            more = ", ..." if len(self.choices) > _SHOWN_CHOICES else ""
            return f"one of {', '.join(map(str, self.choices[:_SHOWN_CHOICES]))}{more}"
        if self.type in _NUMBERS:
            bounds = [
                f"{word} {bound}" for word, bound in (("from", self.minimum), ("to", self.maximum)) if bound is not None
            ]
            return " ".join([_NUMBERS[self.type], *bounds])
        if self.type == "string":
            return "text" if self.max_length is None else f"text of at most {self.max_length} characters"
        if self.type == "boolean":
            return "true or false"
        return f"{self.type}: a name under UPLOADS_URL, a URL there or a data URI"

    def accepts(self, value: object) -> bool:
        """Whether this is a value for it."""
        if not self._is_of_type(value) or (self.choices is not None and value not in self.choices):
            return False
        if isinstance(value, str):
            return self.max_length is None or len(value) <= self.max_length
        return self._is_in_range(value)

    def clean(self, value: Any) -> Any:  # noqa: ANN401  (of the parameter's type)
        """An accepted value as the node gets it: JSON may write a whole number as 5.0."""
        return int(value) if self.type == "integer" else value

    def to_json_schema(self) -> dict[str, Any]:
        """JSON Schema of its values."""
        is_media = self.type in MEDIA_TYPES
        members: dict[str, Any] = {
            "type": "string" if is_media else self.type,
            "description": self.description or None,
            "contentMediaType": f"{'image' if self.type == 'mask' else self.type}/*" if is_media else None,
            "minimum": self.minimum,
            "maximum": self.maximum,
            "enum": self.choices,
            "maxLength": self.max_length,
        }
        schema = {name: member for name, member in members.items() if member is not None}
        return schema if self.required or self.random else schema | {"default": self.default}

    def _is_of_type(self, value: object) -> bool:
        if self.type == "boolean":
            return isinstance(value, bool)
        if self.type not in _NUMBERS:
            return isinstance(value, str) and (self.type == "string" or value != "")
        if isinstance(value, float):
            return value.is_integer() if self.type == "integer" else math.isfinite(value)
        return isinstance(value, int) and not isinstance(value, bool)

    def _is_in_range(self, value: Any) -> bool:  # noqa: ANN401  (a number, or a boolean without bounds)
        above = self.minimum is None or value >= self.minimum
        return above and (self.maximum is None or value <= self.maximum)

    def _problem(self) -> str:
        """What is wrong with the declaration itself; "" if nothing is."""
        bounds = [bound for bound in (self.minimum, self.maximum) if bound is not None]
        if bounds and self.type not in _NUMBERS:
            return f"minimum and maximum are for integer and number, this is {self.type}"
        if not all(map(self._is_of_type, bounds)):
            return f"minimum and maximum must be {_NUMBERS[self.type]}"
        if bounds and bounds[0] > bounds[-1]:
            return "minimum is larger than maximum"
        if self.max_length is not None and self.type != "string":
            return f"max_length is for string, this is {self.type}"
        return self._problem_of_choices() or self._problem_of_default()

    def _problem_of_choices(self) -> str:
        choices = self.choices or []
        if choices and (self.type == "boolean" or self.type in MEDIA_TYPES):
            return f"choices are for integer, number and string, this is {self.type}"
        wrong = next((choice for choice in choices if not self.accepts(choice)), None)
        return "" if wrong is None else f"the choice {wrong!r} is not what type, range and max_length say"

    def _problem_of_default(self) -> str:
        if self.random and self.choices is not None:
            return 'the default "random" takes a range, not choices'
        if self.random and self.maximum is None and (self.minimum or 0) > LARGEST_RANDOM:
            return f'the default "random" with a minimum above {LARGEST_RANDOM} needs a maximum'
        if self.required or self.random or self.accepts(self.default):
            return ""
        return f"the default is not {self.expected}"
