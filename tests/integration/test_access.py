"""Who may use a segment: its user, or a group; and whose segments are trusted. SECURITY.md.

Other users are children of this process that give up being root for good.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import pickle
import signal
import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from command import embar_shm, running_broker

import embar_shm as es
from embar_shm import _core, access
from embar_shm import segment as segment_module
from embar_shm.address import RingName
from embar_shm.errors import AccessDenied, BrokerExists, ConfigurationError, IncompatibleSegment
from embar_shm.layout import Geometry
from embar_shm.segment import Segment
from embar_shm.testing import Child, leftovers

SMALL = Geometry.plan(2, 4096, 4)


@dataclass(frozen=True)
class User:
    """A user id, which need not have a name, and its groups; the first one is the primary."""

    uid: int
    gids: tuple[int, ...]


SHARED, OTHER = 61100, 61200  # groups
ROOT = User(0, (0,))
ANNA = User(61001, (61001, SHARED))
BERT = User(61002, (61002, SHARED, OTHER))
STRANGER = User(61003, (61003,))


def without_other_users() -> str:
    """Why this process cannot become them; empty if it can."""
    if os.geteuid() != 0:
        return "only root can become other users"
    for file in ("uid_map", "gid_map"):
        lines = Path(f"/proc/self/{file}").read_text().splitlines()
        ranges = [map(int, line.split()) for line in lines]
        most = max((first + count for first, _, count in ranges), default=0)
        if most <= OTHER:
            return f"this user namespace has no other users (/proc/self/{file})"
    return ""


needs_users = pytest.mark.skipif(bool(without_other_users()), reason=without_other_users())


@pytest.fixture
def name(cluster: str) -> Iterator[RingName]:
    ring = RingName(cluster, "0")
    yield ring
    ring.path.unlink(missing_ok=True)


class Forked:
    """A child of this process that is `user` and does `action`."""

    def __init__(self, user: User, action: Callable[[], object]) -> None:
        self._results, answers = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # threads here hold no locks
            self.pid = os.fork()
        if self.pid:
            os.close(answers)
            return
        try:
            os.setgroups(user.gids)
            os.setgid(user.gids[0])
            os.setuid(user.uid)
            try:
                outcome: tuple[object, BaseException | None] = action(), None
            except BaseException as error:
                outcome = None, error
            os.write(answers, pickle.dumps(outcome))
        finally:
            os._exit(0)

    def result(self) -> Any:
        """What `action` returned, or raised."""
        with os.fdopen(self._results, "rb") as pipe:
            answer = pipe.read()
        os.waitpid(self.pid, 0)
        result, error = pickle.loads(answer)  # noqa: S301 - from our own child
        if error is not None:
            raise error
        return result


def as_user(user: User, action: Callable[[], object]) -> Any:
    """What `action` returns, or raises, when this user does it."""
    return Forked(user, action).result()


@contextmanager
def serving(user: User, name: RingName, **options: Any) -> Iterator[str]:
    """A broker that this user runs; its address."""
    ready, tell = os.pipe()

    def run() -> None:
        with (
            es.Broker.create(str(name), slots=2, slot_size=4096, **options) as broker,
            suppress(SystemExit),  # of a SIGTERM that comes before it serves
        ):
            os.write(tell, broker.address.encode())
            os.close(tell)
            broker.serve()

    child = Forked(user, run)
    os.close(tell)
    with os.fdopen(ready, "rb") as pipe:
        address = pipe.read().decode()
    try:
        yield address
    finally:
        if address:
            os.kill(child.pid, signal.SIGTERM)
        child.result()


def publish_and_read(address: str) -> bytes:
    """One message through the ring, as publisher and subscriber."""
    with es.Subscriber.connect(address, timeout=20) as sub, es.Publisher.connect(address) as pub:
        pub.publish(b"a message")
        pub.wait_acked(timeout=20)
        with sub.next() as batch:
            return b"".join(map(bytes, batch.messages()))


def give_away(path: Path, user: User, gid: int, mode: int) -> None:
    """Makes it a file of somebody else, as one that was planted there."""
    os.chown(path, user.uid, gid)
    path.chmod(mode)


# --- the file of a segment ------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777], ids=oct)
def test_a_segment_for_a_group_has_that_group_and_no_more_whatever_the_umask(
    name: RingName, umask: int
) -> None:
    before = os.umask(umask)
    try:
        segment = Segment.create(name, SMALL, group=os.getegid())
    finally:
        os.umask(before)
    try:
        found = name.path.stat()
        assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o660, os.getegid())
    finally:
        segment.unlink()
        segment.close()


@needs_users
def test_a_group_is_let_in_when_everything_else_is_done(
    name: RingName, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, int, int, bool]] = []

    def look_first(owner: Any, step: str) -> None:
        go_on = getattr(owner, step)

        def look(*arguments: Any, **options: Any) -> Any:
            found = name.path.stat()
            whole = name.path.read_bytes()[:8] == _core.MAGIC.to_bytes(8, "little")
            seen.append((step, stat.S_IMODE(found.st_mode), found.st_gid, whole))
            return go_on(*arguments, **options)

        monkeypatch.setattr(owner, step, look)

    look_first(os, "fchown")
    look_first(_core, "try_lock")
    look_first(segment_module, "reserve")
    look_first(segment_module, "prefault_memory")
    look_first(_core, "format_segment")
    look_first(_core, "publish_segment")
    look_first(access, "let_in")
    segment = Segment.create(name, SMALL, group=SHARED)
    segment.unlink()
    segment.close()
    assert seen == [
        ("fchown", 0o600, 0, False),
        ("try_lock", 0o600, SHARED, False),
        ("reserve", 0o600, SHARED, False),
        ("prefault_memory", 0o600, SHARED, False),
        ("format_segment", 0o600, SHARED, False),
        ("publish_segment", 0o600, SHARED, False),
        ("let_in", 0o600, SHARED, True),
    ]


@needs_users
def test_a_group_that_the_broker_is_not_in_is_refused_with_those_it_is_in(name: RingName) -> None:
    with pytest.raises(ConfigurationError, match=f"to the group {OTHER}") as caught:
        as_user(ANNA, lambda: es.Broker.create(str(name), group=OTHER))
    assert f"user {ANNA.uid} with the groups {ANNA.uid}, {SHARED}" in str(caught.value)
    assert leftovers(name.cluster) == []


@needs_users
def test_a_folder_that_the_broker_may_not_write_to_is_told(
    name: RingName, run_child: Callable[..., Child]
) -> None:
    mount = 'mount -t tmpfs -o mode=755 tmpfs /dev/shm && exec "$@"'
    child = run_child(
        """
        import os, sys
        import embar_shm as es

        es.Broker.create(sys.argv[1], slots=2, slot_size=4096).close()
        os.setuid(int(sys.argv[2]))
        try:
            es.Broker.create(sys.argv[1], slots=2, slot_size=4096)
        except es.ResourceError as error:
            print(error)
        """,
        name,
        STRANGER.uid,
        wrapper=["unshare", "--mount", "--propagation", "private", "sh", "-c", mount, "sh"],
    )
    assert "cannot be created: No permission" in child.read()


@pytest.mark.parametrize(
    "group", ["no such group", "", "-1", -1, 2**32 - 1, "4294967295", True, 1.5, "a\0b", "²"]
)
def test_a_group_that_does_not_exist_is_refused(name: RingName, group: Any) -> None:
    with pytest.raises(ConfigurationError, match="there is no group") as caught:
        es.Broker.create(str(name), group=group)
    assert repr(group) in str(caught.value)
    assert leftovers(name.cluster) == []


def test_a_group_has_a_name_or_a_number() -> None:
    known = access.group_name(0)  # has a name everywhere
    assert known != "0"
    assert access.group_id(known) == access.group_id("0") == access.group_id(0) == 0
    assert access.group_id(str(SHARED)) == SHARED
    assert access.group_name(SHARED) == str(SHARED)


# --- users and groups -----------------------------------------------------------------------------


@needs_users
def test_another_user_is_refused_with_both_names(name: RingName) -> None:
    with serving(ANNA, name) as address:
        for user in (BERT, STRANGER):
            with pytest.raises(AccessDenied, match="who alone may use it") as caught:
                as_user(user, lambda: es.Publisher.connect(address, connect_timeout=60))
            message = str(caught.value)
            assert f"belongs to user {ANNA.uid}" in message
            assert f"this process is user {user.uid}" in message
        assert as_user(ANNA, lambda: publish_and_read(address)) == b"a message"


@needs_users
def test_members_of_the_group_publish_and_subscribe(name: RingName) -> None:
    with serving(ANNA, name, group=str(SHARED)) as address:
        assert address == f"shm://{name}?group={SHARED}"
        for user in (ANNA, BERT, ROOT):
            assert as_user(user, lambda: publish_and_read(address)) == b"a message"


@needs_users
def test_the_command_starts_a_broker_for_a_group_and_tells_its_address(name: RingName) -> None:
    with running_broker(str(name), "--group", str(SHARED)) as broker:
        assert broker.address == f"shm://{name}?group={SHARED}"
        assert as_user(BERT, lambda: publish_and_read(broker.address)) == b"a message"
        with pytest.raises(AccessDenied, match=f"the group {SHARED}"):
            as_user(STRANGER, lambda: es.Publisher.connect(broker.address))


@needs_users
def test_commands_take_an_address_with_a_group(name: RingName, tmp_path: Path) -> None:
    (tmp_path / "lines").write_text("one\n")
    with serving(ANNA, name, group=SHARED, retain=1) as address:
        published = embar_shm("publish", address, str(tmp_path / "lines"))
        assert published.code == 0, published.stderr
        read = embar_shm("subscribe", address, "--start", "earliest", "--count", "1")
        assert (read.code, read.stdout) == (0, "one\n"), read.stderr
        refused = embar_shm("publish", f"shm://{name}", str(tmp_path / "lines"))
        assert refused.code == 1
        assert f"?group={SHARED}" in refused.stderr


@needs_users
def test_who_is_not_in_the_group_is_refused_with_the_group(name: RingName) -> None:
    with serving(ANNA, name, group=SHARED) as address:
        with pytest.raises(AccessDenied, match=f"user {ANNA.uid} and the group {SHARED}") as caught:
            as_user(STRANGER, lambda: es.Subscriber.connect(address, connect_timeout=60))
        assert f"with the groups {STRANGER.uid}" in str(caught.value)


@needs_users
@pytest.mark.parametrize("user", [BERT, ROOT], ids=["a member", "root"])
@pytest.mark.parametrize("query", ["", f"?group={OTHER}"], ids=["no group", "another group"])
def test_who_was_not_told_to_trust_the_group_does_not(
    name: RingName, user: User, query: str
) -> None:
    with serving(ANNA, name, group=SHARED):
        with pytest.raises(AccessDenied, match="neither this process' user") as caught:
            as_user(user, lambda: es.Publisher.connect(f"shm://{name}{query}"))
        assert f"?group={SHARED}" in caught.value.hint


@needs_users
def test_root_does_not_use_the_segment_of_a_user(name: RingName) -> None:
    with (
        serving(ANNA, name) as address,
        pytest.raises(AccessDenied, match=f"belongs to user {ANNA.uid}, which is neither"),
    ):
        es.Publisher.connect(address)


@needs_users
def test_root_is_trusted_with_a_group_by_its_members(name: RingName) -> None:
    with serving(ROOT, name, group=SHARED):
        assert as_user(BERT, lambda: publish_and_read(f"shm://{name}")) == b"a message"
        with pytest.raises(AccessDenied):
            as_user(STRANGER, lambda: es.Publisher.connect(f"shm://{name}"))


@needs_users
def test_a_member_waits_for_a_segment_that_is_being_made(
    name: RingName, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked, tell = os.pipe()
    look, let_in = access.open_file, access.let_in

    def note_the_look(path: Path) -> int:
        try:
            return look(path)
        except access.NotOpenYet:
            os.write(tell, b".")
            raise

    def be_seen_first(fd: int, group: int | None) -> None:
        # The second look shows that the first one was not the end.
        assert os.read(looked, 1) + os.read(looked, 1) == b".."
        let_in(fd, group)
        assert attached.acquire(timeout=60)

    def attach() -> None:
        Segment.attach(name, timeout=60, group=SHARED).close()
        attached.release()

    def create() -> None:
        os.close(tell)
        segment = Segment.create(name, SMALL, group=SHARED)
        segment.unlink()
        segment.close()

    attached = multiprocessing.get_context("fork").Semaphore(0)
    monkeypatch.setattr(access, "let_in", be_seen_first)
    anna = Forked(ANNA, create)
    monkeypatch.setattr(access, "open_file", note_the_look)
    bert = Forked(BERT, attach)
    os.close(tell)
    try:
        bert.result()
        anna.result()
    finally:
        os.close(looked)


# --- what somebody planted ------------------------------------------------------------------------


@needs_users
@pytest.mark.parametrize("owner", [ROOT, ANNA], ids=["one's own", "another user's"])
@pytest.mark.parametrize(
    ("mode", "says"),
    [
        (0o666, "mode 0666: others could write into it"),
        (0o606, "mode 0606: others could write into it"),
        (0o664, "mode 0664: others could read it"),
        (0o640, "mode 0640: no broker has set that"),
        (0o4660, "mode 4660: no broker has set that"),
        (0o770, "mode 0770: no broker has set that"),
    ],
)
def test_a_segment_that_is_open_to_more_is_refused_whosever_it_is(
    name: RingName, owner: User, mode: int, says: str
) -> None:
    Segment.create(name, SMALL).close()
    give_away(name.path, owner, SHARED, mode)
    for connect in (es.Publisher.connect, es.Subscriber.connect):
        with pytest.raises(AccessDenied, match=says):
            connect(f"shm://{name}?group={SHARED}")


@needs_users
def test_nobody_publishes_into_a_segment_that_a_stranger_planted(name: RingName) -> None:
    with serving(STRANGER, name) as address:
        for mode in (0o666, 0o660, 0o600):
            name.path.chmod(mode)
            for user in (BERT, ROOT):
                with pytest.raises(AccessDenied, match=f"user {STRANGER.uid}"):
                    as_user(user, lambda: es.Publisher.connect(address))


@needs_users
@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666], ids=oct)
@pytest.mark.parametrize("replace_dead", [False, True])
def test_a_broker_whose_name_a_stranger_took_is_told_who_it_was(
    name: RingName, mode: int, replace_dead: bool
) -> None:
    Segment.create(name, SMALL).close()
    give_away(name.path, STRANGER, SHARED, mode)
    with pytest.raises(BrokerExists, match=f"{name}.*{STRANGER.uid}") as caught:
        as_user(ANNA, lambda: es.Broker.create(str(name), replace_dead=replace_dead))
    assert str(name.path) in str(caught.value)
    assert name.path.stat().st_uid == STRANGER.uid


@needs_users
@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666], ids=oct)
@pytest.mark.parametrize("user", [ANNA, ROOT], ids=["a user", "root"])
def test_nobody_takes_over_what_a_stranger_left(name: RingName, user: User, mode: int) -> None:
    """Not even root: the stranger may have written what is in it, and can cut it."""
    Segment.create(name, SMALL).close()
    give_away(name.path, STRANGER, SHARED, mode)
    with pytest.raises(BrokerExists, match=f"{name.path}.*user {STRANGER.uid}"):
        as_user(user, lambda: es.Broker.open_or_recover(str(name)))
    assert name.path.stat().st_uid == STRANGER.uid


def test_nobody_takes_over_what_others_could_write(name: RingName) -> None:
    Segment.create(name, SMALL).close()
    name.path.chmod(0o666)
    with pytest.raises(AccessDenied, match="mode 0666") as caught:
        es.Broker.open_or_recover(str(name))
    assert "--replace-dead" in caught.value.hint
    es.Broker.create(str(name), replace_dead=True).close()


def test_nobody_takes_over_what_may_have_been_brought_back(name: RingName, cluster: str) -> None:
    """A link that somebody kept lets an old ring stand where it was before."""
    kept = RingName(cluster, "kept").path
    Segment.create(name, SMALL).close()
    os.link(name.path, kept)
    try:
        with pytest.raises(AccessDenied, match="has 2 names"):
            es.Broker.open_or_recover(str(name))
        es.Broker.create(str(name), replace_dead=True).close()
        os.link(kept, name.path)
        with pytest.raises(AccessDenied, match="has 2 names"):
            es.Broker.open_or_recover(str(name))
    finally:
        kept.unlink()


def left_behind(user: User, name: RingName, **options: Any) -> int:
    """A ring with one batch in it, whose broker was killed; the inode of its file."""

    def leave() -> None:
        broker = es.Broker.create(str(name), slots=2, slot_size=4096, retain=1, **options)
        with es.Publisher.connect(broker.address) as pub:
            pub.publish(b"x")
            pub.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(EOFError):
        as_user(user, leave)
    return name.path.stat().st_ino


@needs_users
@pytest.mark.parametrize(
    ("before", "after", "mode", "notes"),
    [
        (None, None, 0o600, []),
        (SHARED, SHARED, 0o660, []),
        (SHARED, None, 0o600, [f"the ring was for {SHARED}, its user only was asked for"]),
        (None, SHARED, 0o660, [f"the ring was for its user only, {SHARED} was asked for"]),
        (OTHER, SHARED, 0o660, [f"the ring was for {OTHER}, {SHARED} was asked for"]),
    ],
)
def test_a_ring_that_is_taken_over_is_for_whom_its_new_broker_says(
    name: RingName, before: int | None, after: int | None, mode: int, notes: list[str]
) -> None:
    inode = left_behind(BERT, name, group=before)

    def look() -> tuple[str, int, list[str]]:
        sizes = {"slots": 2, "slot_size": 4096}
        with es.Broker.open_or_recover(str(name), group=after, **sizes) as broker:
            assert broker.recovery is not None
            found = name.path.stat()
            assert (found.st_ino, stat.S_IMODE(found.st_mode)) == (inode, mode)
            return broker.address, found.st_gid, list(broker.recovery.notes)

    address, gid, told = as_user(BERT, look)
    assert address == f"shm://{name}" + (f"?group={after}" if after else "")
    assert after in (None, gid)
    assert [note.partition(": ")[2].partition(";")[0] for note in told] == notes


# What somebody may have put where a segment should be, and what the error calls it.
PLANTED: dict[str, Callable[[Path], object]] = {
    "a symbolic link": lambda path: path.symlink_to("/etc/hostname"),
    "a symbolic link to nothing": lambda path: path.symlink_to("/nowhere"),
    "a symbolic link to itself": lambda path: path.symlink_to(path),
    "a FIFO": lambda path: os.mkfifo(path, 0o600),
    "a directory": lambda path: path.mkdir(0o700),
    "a socket": lambda path: os.mknod(path, stat.S_IFSOCK | 0o600),
    "a device": lambda path: os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3)),
}


@pytest.fixture
def planted(request: pytest.FixtureRequest, name: RingName) -> Iterator[RingName]:
    if request.param == "a device" and os.geteuid() != 0:
        pytest.skip("only root can make devices")
    PLANTED[request.param](name.path)
    before = name.path.lstat()
    yield name
    after = name.path.lstat()  # neither removed nor replaced
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    if stat.S_ISDIR(after.st_mode):
        name.path.rmdir()


@pytest.mark.parametrize("planted", PLANTED, indirect=True)
def test_what_is_no_file_is_refused_by_its_kind(
    request: pytest.FixtureRequest, planted: RingName
) -> None:
    kind = request.node.callspec.params["planted"].removesuffix(" to nothing")
    kind = kind.removesuffix(" to itself")
    for connect in (es.Publisher.connect, es.Subscriber.connect):
        with pytest.raises(IncompatibleSegment, match=f"{planted.path} is {kind} of"):
            connect(f"shm://{planted}", connect_timeout=60)
    for replace_dead in (False, True):
        with pytest.raises(BrokerExists, match=f"{planted.path} is {kind} of"):
            es.Broker.create(str(planted), replace_dead=replace_dead)


def test_a_link_to_another_ring_leads_nowhere(
    cluster: str, name: RingName, make_broker: Callable[..., es.Broker]
) -> None:
    broker = make_broker("1")
    name.path.symlink_to(broker.segment.name.path)
    with pytest.raises(IncompatibleSegment, match="a symbolic link"):
        es.Publisher.connect(f"shm://{name}")


def test_a_second_name_of_another_ring_is_refused(
    cluster: str, name: RingName, make_broker: Callable[..., es.Broker]
) -> None:
    broker = make_broker("1")
    os.link(broker.segment.name.path, name.path)
    with pytest.raises(IncompatibleSegment, match=f"name: the segment has {broker.name}"):
        es.Publisher.connect(f"shm://{name}")


def test_a_lease_on_the_file_stops_nobody_who_opens_it(name: RingName) -> None:
    """Another one's open(2) would wait for /proc/sys/fs/lease-break-time, 45 s."""
    Segment.create(name, SMALL).close()
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)  # "somebody wants to open it"
    fd = os.open(name.path, os.O_RDWR)
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        with pytest.raises(es.ResourceError, match="cannot be opened"):
            es.Publisher.connect(f"shm://{name}")
    finally:
        os.close(fd)
        signal.signal(signal.SIGIO, before)


def test_a_segment_its_user_may_not_open_yet_is_waited_for(
    name: RingName, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With umask 0777 it is made with mode 0, and then gets the right one."""
    segment = Segment.create(name, SMALL)
    name.path.chmod(0)
    tries: list[Path] = []
    look = access.open_file

    def open_at_the_second_try(path: Path) -> int:
        tries.append(path)
        if len(tries) == 1:
            raise access.NotOpenYet("as the kernel says to all but root")
        path.chmod(0o600)
        return look(path)

    monkeypatch.setattr(access, "open_file", open_at_the_second_try)
    try:
        Segment.attach(name).close()
    finally:
        segment.unlink()
        segment.close()


@needs_users
def test_a_segment_its_user_may_not_open_is_given_up(name: RingName) -> None:
    Segment.create(name, SMALL).close()
    give_away(name.path, ANNA, ANNA.gids[0], 0)
    with pytest.raises(AccessDenied, match="mode 0000: its own user may not open it"):
        as_user(ANNA, lambda: es.Publisher.connect(f"shm://{name}"))
