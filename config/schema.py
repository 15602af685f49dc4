"""Every key of a run: its type, default, bounds, other names, and what it must agree with.

This module is the only list of keys. The YAML files, the EMBAR_* variables, the command line flags
and their help are all made from it, so a key cannot exist in one place and be ignored in another.

Values arrive as Python objects (from YAML) or as text (from the environment and flags) and go
through the same functions (`values`), which speak in sentences: a mistake shows what was written
and what is allowed, never how it is checked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, get_args, get_origin

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from embar_shm.config.values import (
    address_list,
    boolean,
    number,
    optional_size,
    optional_text,
    order_level,
    quoted,
    size,
    transport_name,
    whole_number,
)
from embar_shm.units import format_size

__all__ = [
    "KEYS",
    "OF_OWN_BROKERS",
    "OF_TCP",
    "RULES",
    "AtMost",
    "Key",
    "RunConfig",
    "broken_rules",
    "check_value",
]


@dataclass(frozen=True)
class _Shown:
    """How a flag's help writes the value of a field, and a default that is none."""

    metavar: str
    none: str = "none"


_Whole = Annotated[int, BeforeValidator(whole_number), _Shown("N")]
_Size = Annotated[int, BeforeValidator(size), _Shown("SIZE")]
_Seconds = Annotated[float, BeforeValidator(number), _Shown("SECONDS")]
_Milliseconds = Annotated[float, BeforeValidator(number), _Shown("MS")]
_Path = Annotated[str | None, BeforeValidator(optional_text), _Shown("PATH")]
_Boolean = Annotated[bool, BeforeValidator(boolean)]


class _Fields(BaseModel):
    """The fields of `RunConfig`, each checked on its own."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        validate_by_name=True,
        validate_by_alias=True,
    )

    transport: Annotated[str, BeforeValidator(transport_name), _Shown("NAME")] = Field(
        default="shm",
        description="How batches reach the brokers: shm, tcp, or an installed plug-in.",
    )
    connect: Annotated[str | None, BeforeValidator(address_list), _Shown("URL,...")] = Field(
        default=None,
        description="Publish to brokers that run elsewhere, one URL for each ('embar-shm broker' "
        "starts one), instead of starting any.",
    )
    brokers: _Whole = Field(
        default=4, ge=1, le=256, description="Broker processes, each with a ring of its own."
    )
    publishers_per_broker: _Whole = Field(
        default=3,
        ge=1,
        le=1024,
        validation_alias=AliasChoices("publishers_per_broker", "threads_per_broker"),
        description="Publisher processes that write to each broker.",
    )
    message_size: _Size = Field(default=1024, ge=1, description="Bytes in one message.")
    batch_size: _Size = Field(
        default=2 * 1024**2, ge=1, description="Bytes of messages collected into one batch."
    )
    total_bytes: _Size = Field(
        default=10 * 1024**3,
        ge=1,
        validation_alias=AliasChoices("total_bytes", "total", "total_message_size"),
        description="Bytes of messages that all publishers send together.",
    )
    order: Annotated[int, BeforeValidator(order_level), _Shown("N")] = Field(
        default=0,
        description="Ordering guarantee: 0 keeps each publisher's order on each broker.",
    )
    ack: _Whole = Field(
        default=1,
        ge=0,
        le=1,
        description="Acknowledgement: 0 none, 1 when the broker has accepted the batch.",
    )
    producer: Literal["one", "many"] = Field(
        default="one",
        description="Publish one message per call, or many messages from one array per call.",
    )
    messages_per_call: _Whole = Field(
        default=64,
        ge=1,
        le=2**31 - 1,
        description="Messages in one call; used with producer 'many' only.",
    )
    slots: _Whole = Field(
        default=8, ge=1, le=4096, description="Batch slots in each broker's ring."
    )
    slot_size: Annotated[
        int | None, BeforeValidator(optional_size), _Shown("SIZE", "batch_size")
    ] = Field(
        default=None, ge=1, description="Bytes of batch data a slot holds; none follows batch_size."
    )
    in_flight: _Whole = Field(
        default=2, ge=1, le=4096, description="Slots one publisher may hold at once."
    )
    max_publishers: _Whole = Field(
        default=64,
        ge=1,
        le=1000,
        description="Rows in each broker's participants table: publishers that can be connected.",
    )
    wait: Literal["adaptive", "spin", "block"] = Field(
        default="adaptive",
        description="How a process waits: spin, block in the kernel, or spin first and then block.",
    )
    spin_us: _Whole = Field(
        default=50,
        ge=0,
        le=1000,
        description="Microseconds an adaptive wait spins before it blocks.",
    )
    broker_scheduling: Literal["batch", "normal"] = Field(
        default="batch",
        description="Scheduling policy of the broker processes: batch (SCHED_BATCH) does not "
        "interrupt publishers in the middle of a batch, normal accepts sooner on a busy machine.",
    )
    # Written `copy` everywhere outside Python: BaseModel owns that attribute name.
    copy_mode: Literal["auto", "plain", "nontemporal"] = Field(
        default="auto",
        validation_alias=AliasChoices("copy"),
        serialization_alias="copy",
        description="How messages are copied into a slot: through the cache, past it, or by size.",
    )
    socket_buffer: Annotated[
        int | None,
        BeforeValidator(optional_size),
        _Shown("SIZE", "what the transport thinks best"),
    ] = Field(
        default=None,
        ge=1,
        description="tcp: bytes that the kernel should hold for a connection, in each direction.",
    )
    token_file: _Path = Field(
        default=None,
        description="tcp: a file with the secret that publishers must know; readable by you only.",
    )
    tls_cert: _Path = Field(
        default=None,
        description="tcp: PEM certificate of the brokers, or of the publishers with connect.",
    )
    tls_key: _Path = Field(default=None, description="tcp: PEM file with the key of tls_cert.")
    tls_ca: _Path = Field(
        default=None,
        description="tcp: PEM certificates by which publishers trust brokers; turns TLS on.",
    )
    linger_ms: _Milliseconds = Field(
        default=100.0,
        ge=0,
        le=86_400_000,
        description="Longest time a partial batch waits for more messages; 0 sets no limit.",
    )
    timeout: _Seconds = Field(
        default=30.0,
        gt=0,
        le=86_400,
        description="Longest time without progress before the run fails.",
    )
    sample_every: _Whole = Field(
        default=256,
        ge=0,
        le=2**31 - 1,
        description="Time one in N messages, and each batch; 0 takes no stage times.",
    )
    ceiling: _Boolean = Field(
        default=True,
        description="Also measure what the machine can do: memory copy, loopback TCP.",
    )


@dataclass(frozen=True)
class AtMost:
    """A rule between two keys: `low` must not exceed `high`."""

    low: str
    high: str
    because: str


RULES: Final = (
    AtMost("message_size", "batch_size", "a message must fit into one batch"),
    AtMost("batch_size", "slot_size", "a batch must fit into one slot"),
    AtMost("message_size", "total_bytes", "a run sends at least one message"),
    AtMost("in_flight", "slots", "a publisher cannot hold more slots than the ring has"),
    AtMost("publishers_per_broker", "max_publishers", "each publisher needs a row in the table"),
)


OF_OWN_BROKERS: Final = ("slots", "slot_size", "max_publishers", "broker_scheduling")
"""What configures the brokers that a run starts. With `connect` it starts none: not used then."""

OF_TCP: Final = ("socket_buffer", "token_file", "tls_cert", "tls_key", "tls_ca")
"""What shared memory has no use for."""


def broken_rules(values: Mapping[str, object]) -> Iterator[AtMost]:
    """The rules that `values` breaks. One about an absent, None or unused value is not broken."""
    unused = () if values.get("connect") is None else OF_OWN_BROKERS
    for rule in (rule for rule in RULES if rule.high not in unused):
        low, high = values.get(rule.low), values.get(rule.high)
        if isinstance(low, int) and isinstance(high, int) and low > high:
            yield rule


class RunConfig(_Fields):
    """The complete, checked configuration of one run.

    Build it with `embar_shm.config.load`, which also says where each value came from, or directly:
    `RunConfig(brokers=1)`. Direct construction raises `pydantic.ValidationError`.
    """

    @model_validator(mode="after")
    def _keep_rules(self) -> RunConfig:
        broken = [
            f"{rule.low} exceeds {rule.high}: {rule.because}" for rule in broken_rules(dict(self))
        ]
        if broken:
            raise ValueError("; ".join(broken))
        return self

    @property
    def addresses(self) -> list[str]:
        """The brokers that run elsewhere; empty: the run starts its own."""
        return [] if self.connect is None else self.connect.split(",")

    @property
    def publishers(self) -> int:
        """Publishers of the whole run."""
        return self.brokers * self.publishers_per_broker

    @property
    def effective_slot_size(self) -> int:
        """Bytes of batch data one slot holds: `slot_size`, or `batch_size` when that is None."""
        return self.batch_size if self.slot_size is None else self.slot_size

    @property
    def total_messages(self) -> int:
        """Whole messages in `total_bytes`, over all publishers."""
        return self.total_bytes // self.message_size


@dataclass(frozen=True)
class Key:
    """One key as users meet it: in YAML by `name`, as EMBAR_<NAME>, and as a flag."""

    name: str
    field: str
    """Attribute of `RunConfig`; differs from `name` only for `copy`."""
    aliases: tuple[str, ...]
    description: str
    default: object
    metavar: str
    """What stands for the value in help; empty for a boolean."""
    none_text: str
    """How a default that is None is written."""

    @property
    def is_boolean(self) -> bool:
        return isinstance(self.default, bool)

    @property
    def is_size(self) -> bool:
        return self.metavar == "SIZE"

    @property
    def default_text(self) -> str:
        """The default as help writes it."""
        return self.none_text if self.default is None else self.show(self.default)

    def show(self, value: object) -> str:
        """`value` of this key, for people: sizes with their unit."""
        if self.is_size and isinstance(value, int):
            return format_size(value)
        if isinstance(value, float):
            return f"{value:g}"
        return str(value).lower() if isinstance(value, bool) else str(value)


def _key(field: str, info: FieldInfo) -> Key:
    names: list[str] = [field]
    if isinstance(info.validation_alias, AliasChoices):
        names = [str(choice) for choice in info.validation_alias.choices]
    shown = next((mark for mark in info.metadata if isinstance(mark, _Shown)), _Shown(""))
    metavar = shown.metavar
    if get_origin(info.annotation) is Literal:
        metavar = "|".join(get_args(info.annotation))
    return Key(
        name=names[0],
        field=field,
        aliases=tuple(names[1:]),
        description=info.description or "",
        default=info.default,
        metavar=metavar,
        none_text=shown.none,
    )


KEYS: Final = tuple(_key(field, info) for field, info in _Fields.model_fields.items())
"""All keys, in the order in which they are documented, printed and recorded."""


def check_value(key: Key, value: object) -> object:
    """The parsed value of one key. Raises `ValueError` with a sentence on what is wrong with it."""
    if value is None and key.default is not None:
        raise ValueError("there is no value")
    if isinstance(value, str) and not value.strip():
        raise ValueError("the value is empty")
    if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError(f"{quoted(value)} is not Unicode text")
    try:
        fields = _Fields.model_validate({key.field: value})
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
