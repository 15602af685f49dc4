"""Choices by name: wrong ones are refused with the right ones, right ones are native numbers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, get_args

import pytest

import embar_shm as es
from embar_shm import _core
from embar_shm.options import COPY_MODES, WAIT_MODES, CopyMode, WaitMode, choose, size
from embar_shm.segment import Segment


@pytest.mark.parametrize(("mode", "numbers"), [(WaitMode, WAIT_MODES), (CopyMode, COPY_MODES)])
def test_the_type_of_a_choice_lists_what_can_be_chosen(
    mode: Any, numbers: Mapping[str, int]
) -> None:
    assert set(get_args(mode)) == set(numbers)


def numbers_in(message: str) -> dict[str, int]:
    return {name: int(number) for number, name in re.findall(r"(\d) \((\w+)\)", message)}


def test_the_wait_modes_have_the_numbers_of_the_native_core(
    make_broker: Callable[..., es.Broker],
) -> None:
    segment: Segment = make_broker().segment
    with pytest.raises(ValueError, match="wait mode must be") as caught:
        _core.BrokerCore(segment.memory, segment.lock_fd, len(WAIT_MODES), 0.0, 1)
    assert numbers_in(str(caught.value)) == WAIT_MODES


def test_the_copy_modes_have_the_numbers_of_the_native_core(
    make_broker: Callable[..., es.Broker],
) -> None:
    segment: Segment = make_broker().segment
    with pytest.raises(ValueError, match="copy must be") as caught:
        _core.PublisherCore(
            segment, segment.memory, index=0, lock_fd=-1, publisher_id=1, incarnation=1,
            message_size=0, batch_bytes=64, quota=1, ack=1, linger_ms=0, copy=len(COPY_MODES),
            sample_every=0, wait_mode=0, spin_us=0, cpus=1, timeout=None,
        )  # fmt: skip
    assert numbers_in(str(caught.value)) == COPY_MODES


def test_a_choice_is_its_number() -> None:
    assert [choose("wait", mode, WAIT_MODES) for mode in WAIT_MODES] == list(WAIT_MODES.values())


@pytest.mark.parametrize("value", ["Adaptive", "", "sleep", None, 0, [], {}])
def test_what_cannot_be_chosen_is_refused_with_what_can(value: Any) -> None:
    with pytest.raises(es.ConfigurationError) as caught:
        choose("wait", value, WAIT_MODES)
    assert f"wait={value!r}" in str(caught.value)
    assert all(mode in caught.value.hint for mode in WAIT_MODES)


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (64, 64), ("2MiB", 2 * 1024**2)])
def test_a_size_is_a_number_of_bytes_or_text_with_a_unit(value: int | str, expected: int) -> None:
    assert size("slot_size", value) == expected


@pytest.mark.parametrize("value", ["2M", "lots", -1, 1.5, None, True])
def test_a_wrong_size_is_refused_with_its_parameter_and_value(value: Any) -> None:
    with pytest.raises(es.ConfigurationError, match=r"^slot_size: ") as caught:
        size("slot_size", value)
    assert str(value) in str(caught.value)
