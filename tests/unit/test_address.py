"""Names of rings are checked before they name a file; addresses are URLs."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embar_shm import address
from embar_shm.address import RingAddress, RingName, existing_rings, split_address
from embar_shm.errors import ConfigurationError

PARTS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", fullmatch=True)


@given(PARTS, PARTS)
def test_a_name_reads_back_as_it_is_written(cluster: str, broker: str) -> None:
    name = RingName.parse(f"{cluster}/{broker}")
    assert (name.cluster, name.broker, str(name)) == (cluster, broker, f"{cluster}/{broker}")


def test_a_ring_is_a_file_that_names_both_parts() -> None:
    name = RingName.parse("demo/0")
    assert name.posix_name == "/embar.demo.0"
    assert name.path == address.SHM_DIRECTORY / "embar.demo.0"


@given(PARTS, PARTS, PARTS, PARTS)
def test_different_names_are_different_files(a: str, b: str, c: str, d: str) -> None:
    if (a, b) != (c, d):
        assert RingName(a, b).path != RingName(c, d).path


@pytest.mark.parametrize(
    "text",
    [
        "",
        "demo",
        "demo/",
        "/0",
        "demo/0/1",
        "demo//0",
        "../etc/passwd",
        "demo/..",
        "demo.a/0",
        "demo/0.1",
        "-demo/0",
        "_demo/0",
        "de mo/0",
        "demo/0\n",
        "demo/0\0",
        "démo/0",
        "demo/" + "x" * 65,
        "shm://demo/0",
        ".demo/0",
        "demo/.",
        "demo/..0",
        "./demo/0",
        "demo/../0",
        "a/../../b",
        "/demo/0",
        "demo\\0",
        "demo/\u0660",  # a digit zero, in Arabic
        "d\u0435mo/0",  # a letter that looks like e, in Cyrillic
        "demo/\uff10",  # a zero of full width
        "demo\u2044" + "0",  # a slash for fractions
        "demo/0\u200b",
        "demo/%2e%2e",
        "demo/0\udcff",
        "x" * 100_000 + "/0",
    ],
    ids=lambda text: ascii(text)[:40],
)
def test_what_is_not_a_name_is_refused_with_the_rule(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        RingName.parse(text)
    assert repr(text)[:60] in str(caught.value)
    assert len(caught.value.message) < 200
    assert '"cluster/broker"' in caught.value.hint


@given(st.text())
def test_whatever_is_taken_for_a_name_stays_in_its_folder(text: str) -> None:
    try:
        path = RingName.parse(text).path
    except ConfigurationError:
        return
    assert path.parent == address.SHM_DIRECTORY
    assert path.name.startswith("embar.")


GROUPS = st.text(min_size=1, max_size=40).filter(str.isprintable)


@given(PARTS, PARTS, GROUPS)
def test_an_address_with_a_group_reads_back_as_it_is_written(
    cluster: str, broker: str, group: str
) -> None:
    where = RingAddress(RingName(cluster, broker), group)
    assert RingAddress.parse(str(where)) == where


def test_an_address_names_the_group_it_trusts() -> None:
    ring = RingName("demo", "0")
    assert RingAddress.parse("demo/0") == RingAddress(ring)
    assert RingAddress.parse("demo/0?group=readers") == RingAddress(ring, "readers")
    assert str(RingAddress(ring, "DOM\\domain users")) == "demo/0?group=DOM%5Cdomain%20users"


@pytest.mark.parametrize(
    "query", ["", "group", "group=", "owner=1", "group=a&group=b", "group=a&x=1", "group=%00", "x"]
)
def test_what_is_not_a_group_in_an_address_is_refused_with_an_example(query: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        RingAddress.parse(f"demo/0?{query}")
    assert repr(query) in str(caught.value)
    assert '"shm://demo/0?group=NAME"' in caught.value.hint


def test_existing_rings_are_those_whose_file_names_are_names_of_rings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(address, "SHM_DIRECTORY", tmp_path)
    assert existing_rings() == []
    for file in (
        "embar.demo.1",
        "embar.demo.0",
        "embar.a.0",
        "embar.demo",
        "embar.demo.0.1",
        "embar..0",
        "embar.de mo.0",
        "other.demo.0",
        "sem.embar.demo.0",
    ):
        (tmp_path / file).touch()
    assert existing_rings() == [RingName("a", "0"), RingName("demo", "0"), RingName("demo", "1")]


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("shm://demo/0", ("shm", "demo/0")),
        ("tcp://[::1]:9000", ("tcp", "[::1]:9000")),
        ("x://y://z", ("x", "y://z")),
    ],
)
def test_an_address_is_split_at_its_scheme(url: str, parts: tuple[str, str]) -> None:
    assert split_address(url) == parts


@pytest.mark.parametrize("url", ["", "demo/0", "shm:/demo/0", "://demo/0", "shm://", "shm"])
def test_what_is_not_an_address_is_refused_with_an_example(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        split_address(url)
    assert repr(url) in str(caught.value)
    assert "shm://demo/0" in caught.value.hint
