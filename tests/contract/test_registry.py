"""Transports are found by their scheme, wherever they were installed from."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import embar_shm as es
from embar_shm import transports

PIGEON = """
from embar_shm.transports.shm import ShmTransport

class Pigeon(ShmTransport):
    scheme = "pigeon"

not_a_class = Pigeon()

class NotATransport:
    scheme = "pigeon"
"""


@pytest.fixture
def install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Callable[..., None]:
    """Installs a distribution with these entry points, and a module `carrier_pigeon`."""

    def install_distribution(module: str = PIGEON, **entry_points: str) -> None:
        info = tmp_path / "carrier_pigeon-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: carrier-pigeon\nVersion: 1.0\n"
        )
        lines = [f"{name} = {value}" for name, value in entry_points.items()]
        (info / "entry_points.txt").write_text(
            "\n".join([f"[{transports.ENTRY_POINT_GROUP}]", *lines, ""])
        )
        (tmp_path / "carrier_pigeon.py").write_text(module)
        monkeypatch.syspath_prepend(tmp_path)
        request.addfinalizer(lambda: sys.modules.pop("carrier_pigeon", None))

    return install_distribution


def test_shared_memory_is_installed() -> None:
    assert "shm" in transports.available()
    assert transports.get("shm").scheme == "shm"


def test_an_unknown_scheme_is_refused_with_those_that_exist() -> None:
    with pytest.raises(es.ConfigurationError, match="no transport 'quantum'") as caught:
        es.Publisher.connect("quantum://demo/0")
    assert f"installed: {', '.join(transports.available())}" in caught.value.hint
    assert "did you mean" not in caught.value.hint


def test_a_misspelled_scheme_is_corrected() -> None:
    with pytest.raises(es.ConfigurationError) as caught:
        transports.get("smh")
    assert "did you mean 'shm'?" in caught.value.hint


def test_without_any_transport_the_error_says_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_entry_points(group: str) -> importlib.metadata.EntryPoints:
        return importlib.metadata.EntryPoints()

    monkeypatch.setattr(importlib.metadata, "entry_points", no_entry_points)
    with pytest.raises(es.ConfigurationError) as caught:
        transports.get("shm")
    assert caught.value.hint == "installed: none"


def test_a_transport_of_another_distribution_carries_messages(
    install: Callable[..., None], make_broker: Callable[..., es.Broker]
) -> None:
    install(pigeon="carrier_pigeon:Pigeon")
    assert "pigeon" in transports.available()
    broker = make_broker().start()
    with es.Publisher.connect(f"pigeon://{broker.name}") as pub:
        pub.publish(b"coo")
        pub.wait_acked()
    assert broker.stats().messages == 1


@pytest.mark.parametrize(
    ("value", "module", "says"),
    [
        ("carrier_pigeon:Pigeon", "import no_such_module", "No module named 'no_such_module'"),
        ("no_such_module:Pigeon", PIGEON, "No module named 'no_such_module'"),
        ("carrier_pigeon:Sparrow", PIGEON, "Sparrow"),
        ("carrier_pigeon:Pigeon", "open('/nonexistent/libpigeon.so')", "libpigeon.so"),
        ("carrier_pigeon:Pigeon", "class Pigeon(", "never closed"),
        ("carrier_pigeon:not_a_class", PIGEON, "no subclass of Transport"),
        ("carrier_pigeon:NotATransport", PIGEON, "no subclass of Transport"),
        (
            "carrier_pigeon:Unfinished",
            "from embar_shm.transports import Transport\n"
            "class Unfinished(Transport):\n"
            "    scheme = 'pigeon'\n",
            "abstract",
        ),
    ],
    ids=[
        "its module misses another",
        "no such module",
        "no such class",
        "its module fails",
        "its module is no Python",
        "an object",
        "another class",
        "an unfinished class",
    ],
)
def test_a_broken_transport_is_refused_with_its_entry_point_and_the_reason(
    install: Callable[..., None], value: str, module: str, says: str
) -> None:
    install(module, pigeon=value)
    with pytest.raises(es.ConfigurationError, match=says) as caught:
        transports.get("pigeon")
    assert f"'pigeon' ({value})" in str(caught.value)


def test_a_broken_transport_does_not_disturb_the_others(install: Callable[..., None]) -> None:
    install(pigeon="no_such_module:Pigeon")
    assert transports.get("shm").scheme == "shm"


def test_the_package_cannot_be_imported_a_second_time_under_another_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(Path(transports.__file__).resolve().parents[1])
    with pytest.raises(ImportError, match=r"as embar_shm\.transports, not as transports"):
        __import__("transports")
