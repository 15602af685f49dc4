"""Reads one value of a key, from YAML's objects or from text; says in a sentence what is wrong."""

from __future__ import annotations

import math
import re
from typing import Final

from embar_shm import access, transports
from embar_shm.address import RingName, split_address
from embar_shm.errors import ConfigurationError
from embar_shm.net import parse_endpoint
from embar_shm.units import parse_size

__all__ = [
    "address_list",
    "boolean",
    "listen_urls",
    "number",
    "optional_group",
    "optional_size",
    "optional_text",
    "optional_whole_number",
    "order_level",
    "quoted",
    "ring_name",
    "size",
    "transport_name",
    "whole_number",
]

IMPLEMENTED_ORDERS: Final = (0,)

_TRUE: Final = frozenset({"true", "yes", "on", "1"})
_FALSE: Final = frozenset({"false", "no", "off", "0"})
_WHOLE_NUMBER: Final = re.compile(r"[-+]?(0|[1-9][0-9]{0,18})", re.ASCII)
_NUMBER: Final = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[-+]?[0-9]+)?", re.IGNORECASE)
_TRANSPORT_NAME: Final = re.compile(r"[a-z][a-z0-9_-]*")


def quoted(value: object) -> str:
    """The value as its writer knows it: YAML words for constants, quotes around text."""
    match value:
        case None:
            text = "null"
        case bool():
            text = str(value).lower()
        case int() if value.bit_length() > 128:  # str() refuses numbers of thousands of digits
            text = f"a {value.bit_length()}-bit number"
        case float():
            text = f"{value:.12g}"
        case str():
            text = repr(value)
        case _:
            text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def whole_number(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and _WHOLE_NUMBER.fullmatch(value.strip()):
        return int(value)
    raise ValueError(f"{quoted(value)} is not a whole number (plain decimal digits)")


def number(value: object) -> float:
    number = math.nan
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        number = float(value) if abs(value) < 1e300 else math.inf
    elif isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{quoted(value)} is not a finite number")
    return number


def size(value: object) -> int:
    if isinstance(value, (str, int)) and not isinstance(value, bool):
        return parse_size(value)
    raise ValueError(f"{quoted(value)} is not a size: write whole bytes, or 2MiB, 10GB")


def optional_size(value: object) -> int | None:
    if value is None or (isinstance(value, str) and value.strip().lower() == "none"):
        return None
    return size(value)


def optional_whole_number(value: object) -> int | None:
    if value is None or (isinstance(value, str) and value.strip().lower() == "none"):
        return None
    return whole_number(value)


def optional_text(value: object) -> str | None:
    if value is None or (isinstance(value, str) and value.strip().lower() == "none"):
        return None
    if isinstance(value, str):
        return value.strip()
    raise ValueError(f"{quoted(value)} is not text")


def optional_group(value: object) -> str | None:
    """A group of users that exists, by name or number."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    text = optional_text(value)
    try:
        access.group_id(text)
    except ConfigurationError as error:
        raise ValueError(f"{error.message}: {error.hint}") from None
    return text


def address_list(value: object) -> str | None:
    """A list of URLs with commas in between. Each is checked by its transport when it is used."""
    text = optional_text(value)
    if text is None:
        return None
    urls = [url.strip() for url in text.split(",")]
    for url in urls:
        try:
            split_address(url)
        except ConfigurationError:
            raise ValueError(
                f"{quoted(url)} is not an address such as tcp://127.0.0.1:7400"
            ) from None
    if len(set(urls)) < len(urls):
        raise ValueError(f"{quoted(value)} names a broker twice")
    return ",".join(urls)


def listen_urls(value: object) -> tuple[str, ...]:
    """URLs to listen on; text is one of them."""
    if isinstance(value, list | tuple):
        return tuple(url for item in value for url in listen_urls(item))
    if not isinstance(value, str):
        raise ValueError(f"{quoted(value)} is not an address such as tcp://127.0.0.1:7400")
    url = value.strip()
    try:
        scheme, rest = split_address(url)
        transports.get(scheme)
        if scheme == "tcp":
            parse_endpoint(rest)
    except ConfigurationError as error:
        raise ValueError(f"{error.message}: {error.hint}") from None
    return (url,)


def ring_name(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{quoted(value)} is not a name such as demo/0")
    try:
        return str(RingName.parse(value.strip()))
    except ConfigurationError as error:
        raise ValueError(f"{error.message}: {error.hint}") from None


def boolean(value: object) -> bool:
    if isinstance(value, bool):
        return value
    word = value.strip().lower() if isinstance(value, str) else None
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise ValueError(f"{quoted(value)} is neither true nor false")


def order_level(value: object) -> int:
    order = whole_number(value)
    if order not in IMPLEMENTED_ORDERS:
        existing = ", ".join(str(number) for number in IMPLEMENTED_ORDERS)
        raise ValueError(f"{quoted(order)} is not implemented; orders that exist: {existing}")
    return order


def transport_name(value: object) -> str:
    if isinstance(value, str) and _TRANSPORT_NAME.fullmatch(value):
        return value
    raise ValueError(f"{quoted(value)} is not the name of a transport, like shm or tcp")
