"""What brokers of this and of other layout versions left behind (``tests/golden/README.md``)."""

from __future__ import annotations

import json
import lzma
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import embar_shm as es
from embar_shm import _core
from embar_shm.address import RingName
from embar_shm.layout import boot_id
from embar_shm.segment import Segment

GOLDEN = Path(__file__).parents[1] / "golden"
EXPECTED = {path.stem: json.loads(path.read_text()) for path in sorted(GOLDEN.glob("*.json"))}
HEADER = {name: (at, size) for name, at, size, _ in _core.structs()["SegmentHeader"][1]}
READABLE = [name for name, told in EXPECTED.items() if "error" not in told]
REFUSED = [name for name, told in EXPECTED.items() if "error" in told]


def restored(golden: str, ring: RingName, **fields: bytes) -> bytes:
    """Writes the segment as if its broker had just died on this machine; what was written."""
    content = bytearray(lzma.decompress((GOLDEN / f"{golden}.xz").read_bytes()))
    fields = {"boot_id": boot_id().encode(), "name": str(ring).encode()} | fields
    for field, value in fields.items():
        at, size = HEADER[field]
        content[at : at + size] = value.ljust(size, b"\0")
    ring.path.write_bytes(content)
    ring.path.chmod(0o600)
    return bytes(content)


@pytest.fixture
def ring(cluster: str) -> Iterator[RingName]:
    name = RingName(cluster, "0")
    yield name
    with suppress(FileNotFoundError):
        name.path.unlink()


def test_there_are_golden_segments_of_this_version_and_of_one_before() -> None:
    versions = [told["layout_version"] for told in EXPECTED.values()]
    assert versions.count(_core.LAYOUT_VERSION) >= 5
    assert min(versions) < _core.LAYOUT_VERSION
    assert {path.stem for path in GOLDEN.glob("*.xz")} == set(EXPECTED)


@pytest.mark.parametrize("golden", READABLE)
def test_a_broker_goes_on_with_what_one_of_its_layout_version_has_left(
    golden: str, ring: RingName
) -> None:
    expected: dict[str, Any] = EXPECTED[golden]
    restored(golden, ring)
    with es.Broker.open_or_recover(
        str(ring), slots=4, slot_size=64, max_publishers=2, max_subscribers=1, retain=2
    ) as broker:
        assert _core.check_ring(broker.segment.memory) == []
        found = broker.recovery
        assert found is not None
        assert found.epoch == 2
        assert found.notes == ()
        for field in ("accepted", "unread", "unaccepted"):
            assert getattr(found, field) == expected[field], field
        assert list(found.redone) == expected["redone"]
        broker.serve(0.2)  # it accepts what was not, and reaps the dead publisher
        broker.start()
        with (
            es.Subscriber.connect(broker.address, start="earliest", timeout=20) as subscriber,
            es.Publisher.connect(broker.address, message_size=8, timeout=20) as publisher,
        ):

            def next_message() -> str:
                with subscriber.next() as batch:
                    (message,) = batch.messages()
                    return bytes(message).decode()

            assert [next_message() for _ in expected["messages"]] == expected["messages"]
            for number in range(5):
                publisher.publish(f"new no {number}".encode())
                publisher.flush()
                assert next_message() == f"new no {number}"
            publisher.wait_acked()


@pytest.mark.parametrize("golden", REFUSED)
def test_a_segment_that_cannot_be_used_is_refused_with_the_reason_and_stays(
    golden: str, ring: RingName
) -> None:
    expected = EXPECTED[golden]
    content = restored(golden, ring)
    with pytest.raises(getattr(es, expected["error"])) as caught:
        es.Broker.open_or_recover(str(ring))
    assert expected["says"] in str(caught.value)
    assert ring.path.read_bytes() == content


@pytest.mark.parametrize("version", [0, _core.LAYOUT_VERSION - 1, _core.LAYOUT_VERSION + 1])
def test_another_layout_version_is_refused_with_both_versions(version: int, ring: RingName) -> None:
    golden = f"version-{_core.LAYOUT_VERSION}-unread"
    content = restored(golden, ring, layout_version=struct.pack("<I", version))
    says = f"layout version: the segment has {version}, this process expects "
    for attempt in (
        lambda: es.Broker.open_or_recover(str(ring)),
        lambda: Segment.attach(ring),
        lambda: es.Publisher.connect(f"shm://{ring}", timeout=0),
        lambda: es.Subscriber.connect(f"shm://{ring}", timeout=0),
    ):
        with pytest.raises(es.IncompatibleSegment, match=says + str(_core.LAYOUT_VERSION)):
            attempt()
    assert ring.path.read_bytes() == content


def test_a_segment_of_another_boot_is_refused(ring: RingName) -> None:
    content = restored(f"version-{_core.LAYOUT_VERSION}-unread", ring, boot_id=b"another boot")
    with pytest.raises(es.IncompatibleSegment, match="boot id: the segment has another boot"):
        es.Broker.open_or_recover(str(ring))
    assert ring.path.read_bytes() == content
