"""What keys are made of: typed fields of a model, each with its text for help, checked on its own.

Values arrive as Python objects (from YAML) or as text (from the environment and flags) and go
through the same functions (`values`), which speak in sentences: a mistake shows what was written
and what is allowed, never how it is checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from embar_shm.config.values import boolean, number, optional_text, quoted, size, whole_number
from embar_shm.units import format_size

__all__ = [
    "AtMost",
    "Boolean",
    "Fields",
    "FilePath",
    "Key",
    "Milliseconds",
    "Seconds",
    "Shown",
    "Size",
    "Whole",
    "check_value",
    "keys_of",
]


@dataclass(frozen=True)
class Shown:
    """How a flag's help writes the value of a field, and a default that is none."""

    metavar: str
    none: str = "none"


Whole = Annotated[int, BeforeValidator(whole_number), Shown("N")]
Size = Annotated[int, BeforeValidator(size), Shown("SIZE")]
Seconds = Annotated[float, BeforeValidator(number), Shown("SECONDS")]
Milliseconds = Annotated[float, BeforeValidator(number), Shown("MS")]
FilePath = Annotated[str | None, BeforeValidator(optional_text), Shown("PATH")]
Boolean = Annotated[bool, BeforeValidator(boolean)]


class Fields(BaseModel):
    """Fields that keys set, each checked on its own. All of them have defaults."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        validate_by_name=True,
        validate_by_alias=True,
    )


@dataclass(frozen=True)
class AtMost:
    """A rule between two keys: `low` must not exceed `high`."""

    low: str
    high: str
    because: str

    def is_broken_by(self, values: Mapping[str, object]) -> bool:
        """Values that are absent, or None, break nothing."""
        low, high = values.get(self.low), values.get(self.high)
        return isinstance(low, int) and isinstance(high, int) and low > high


@dataclass(frozen=True)
class Key:
    """One key as users meet it: in YAML by `name`, as EMBAR_<NAME>, and as a flag."""

    name: str
    field: str
    """Attribute of its model; differs from `name` only for `copy`."""
    model: type[BaseModel]
    """Has the field, and checks it."""
    aliases: tuple[str, ...]
    description: str
    default: object
    metavar: str
    """What stands for the value in help; empty for a boolean."""
    none_text: str
    """How a default that is None is written."""

    @property
    def is_list(self) -> bool:
        return isinstance(self.default, tuple)

    @property
    def is_boolean(self) -> bool:
        return isinstance(self.default, bool)

    @property
    def is_size(self) -> bool:
        return self.metavar == "SIZE"

    @property
    def default_text(self) -> str:
        """The default as help writes it."""
        return self.none_text if self.default in (None, ()) else self.show(self.default)

    def show(self, value: object) -> str:
        """`value` of this key, for people: sizes with their unit."""
        if self.is_size and isinstance(value, int):
            return format_size(value)
        if isinstance(value, float):
            return f"{value:g}"
        return str(value).lower() if isinstance(value, bool) else str(value)


def keys_of(model: type[BaseModel]) -> tuple[Key, ...]:
    """The keys that set the fields of a model."""
    return tuple(_key(model, field, info) for field, info in model.model_fields.items())


def _key(model: type[BaseModel], field: str, info: FieldInfo) -> Key:
    names: list[str] = [field]
    if isinstance(info.validation_alias, AliasChoices):
        names = [str(choice) for choice in info.validation_alias.choices]
    shown = next((mark for mark in info.metadata if isinstance(mark, Shown)), Shown(""))
    metavar = shown.metavar
    if get_origin(info.annotation) is Literal:
        metavar = "|".join(get_args(info.annotation))
    return Key(
        name=names[0],
        field=field,
        model=model,
        aliases=tuple(names[1:]),
        description=info.description or "",
        default=info.default,
        metavar=metavar,
        none_text=shown.none,
    )


def check_value(key: Key, value: object) -> object:
    """The parsed value of one key. Raises `ValueError` with a sentence on what is wrong with it."""
    if value is None and key.default is not None:
        raise ValueError("there is no value")
    if isinstance(value, str) and not value.strip():
        raise ValueError("the value is empty")
    if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError(f"{quoted(value)} is not Unicode text")
    try:
        fields = key.model.model_validate({key.field: value})
    except ValidationError as error:
        raise ValueError(_sentence(error.errors()[0])) from None
    checked: object = getattr(fields, key.field)
    return checked


def _sentence(details: ErrorDetails) -> str:
    context: dict[str, Any] = details.get("ctx", {})
    value = quoted(details["input"])
    match details["type"]:
        case "value_error":
            return str(context["error"])
        case "greater_than_equal":
            return f"{value} is below the minimum {context['ge']:g}"
        case "less_than_equal":
            return f"{value} is above the maximum {context['le']:.12g}"
        case "greater_than":
            return f"{value} is too small: it must be above {context['gt']:g}"
        case "literal_error":
            return f"{value} is not one of the choices: {context['expected']}"
        case _:
            return f"{value}: {details['msg']}"
