"""Sizes are exact and unambiguous; rates and durations never show "1000" of a unit."""

from __future__ import annotations

import math
from typing import Any

import pytest

from embar_shm.units import MAX_SIZE, format_duration, format_rate, format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64", 64),
        ("64 B", 64),
        ("64b", 64),
        ("0", 0),
        (64, 64),
        ("1KB", 1000),
        ("1KiB", 1024),
        ("1MB", 1000**2),
        ("2MiB", 2 * 1024**2),
        ("10GB", 10 * 1000**3),
        ("10 GiB", 10 * 1024**3),
        ("1TB", 1000**4),
        ("1TiB", 1024**4),
        ("2mib", 2 * 1024**2),
        ("2MIB", 2 * 1024**2),
        ("  2 MiB ", 2 * 1024**2),
        ("1.5 GiB", 3 * 512 * 1024**2),
        ("0.1TB", 100 * 1000**3),  # exact, where 0.1 as a float is not
        ("0.5KiB", 512),
        ("1.0", 1),
        (str(MAX_SIZE), MAX_SIZE),
    ],
)
def test_a_size_is_read_exactly(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("2K", "ambiguous: write KB for powers of 1000, KiB for powers of 1024"),
        ("2m", "ambiguous: write MB for powers of 1000, MiB for powers of 1024"),
        ("2 G", "ambiguous"),
        ("2T", "ambiguous"),
        ("2 MiBs", "unknown unit: use one of B, KB, MB, GB, TB, KiB"),
        ("2 Mi", "unknown unit"),
        ("-1", "negative"),
        ("-1.5MiB", "negative"),
        (-1, "negative"),
        ("nan", "not a size"),
        ("inf", "not a size"),
        ("-inf", "not a size"),
        ("", "not a size"),
        ("MiB", "not a size"),
        ("1e9", "not a size"),
        ("1_000", "not a size"),
        ("1,000", "not a size"),
        ("0x10", "not a size"),
        ("+5", "not a size"),
        ("٣", "not a size"),  # a digit to str.isdigit, but not to the reader
        (True, "not a size"),
        (False, "not a size"),
        (1.0, "not a size"),
        (None, "not a size"),
        ("1.5", "not a whole number of bytes"),
        ("0.0001 KiB", "not a whole number of bytes"),
        (MAX_SIZE + 1, "too large"),
        (str(MAX_SIZE + 1), "too large"),
        ("9999999 TiB", "too large"),
    ],
)
def test_what_is_not_a_size_is_refused_with_its_value(text: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        parse_size(text)
    assert str(text).strip() in str(caught.value)


def test_a_long_value_is_cut_in_the_message() -> None:
    with pytest.raises(ValueError, match="not a size") as caught:
        parse_size("9" * 10_000)
    assert len(str(caught.value)) < 200


def test_an_integer_too_long_to_print_is_still_refused_with_a_sentence() -> None:
    with pytest.raises(ValueError, match="20001-bit number is too large"):
        parse_size(1 << 20_000)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (512, "512 B"),
        (1000, "1 KB"),
        (1024, "1 KiB"),
        (1025, "1,025 B"),
        (1_234_567, "1,234,567 B"),
        (2 * 1024**2, "2 MiB"),
        (10 * 1000**3, "10 GB"),
        (10 * 1024**3, "10 GiB"),
        (1536 * 1024, "1,536 KiB"),
        (5000 * 1024**4, "5,000 TiB"),
    ],
)
def test_a_size_is_written_in_the_unit_that_says_it_exactly(size: int, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.parametrize("size", [1, 1000, 1024, 1025, 10**10, 2**31 - 1, 2**31, 3 * 2**20])
def test_a_written_size_reads_back_as_itself(size: int) -> None:
    assert parse_size(format_size(size).replace(",", "")) == size


def test_a_negative_size_is_not_written() -> None:
    with pytest.raises(ValueError, match="-1 is negative"):
        format_size(-1)


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (0, "0.00 B/s"),
        (999, "999.0 B/s"),
        (1500, "1.50 KB/s"),
        (836e6, "836.0 MB/s"),
        (999.94e6, "999.9 MB/s"),
        (999.96e6, "1.00 GB/s"),  # rounds up into the next unit
        (14.83e9, "14.83 GB/s"),
        (123.4e9, "123.4 GB/s"),
        (2e12, "2000.0 GB/s"),
    ],
)
def test_a_rate_is_written_in_powers_of_1000(rate: float, text: str) -> None:
    assert format_rate(rate) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (90e-9, "90.0 ns"),
        (0.9996e-6, "1.00 us"),  # rounds up into the next unit
        (2.1e-3, "2.10 ms"),
        (0.125, "125 ms"),
        (1, "1.00 s"),
        (12.5, "12.5 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (125, "2 min 05 s"),
        (3599.6, "1 h 00 min 00 s"),
        (7384, "2 h 03 min 04 s"),
    ],
)
def test_a_duration_is_written_in_the_unit_that_reads_best(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize("number", [-1.0, math.nan, math.inf, -math.inf])
def test_a_rate_or_duration_must_be_finite_and_not_negative(number: float) -> None:
    with pytest.raises(ValueError, match="is not a rate"):
        format_rate(number)
    with pytest.raises(ValueError, match="is not a duration"):
        format_duration(number)
