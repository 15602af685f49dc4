"""The protocol's table, its frames and what they may contain; without sockets."""

from __future__ import annotations

import itertools
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from wire import HELLO, batch, batch_header

from embar_shm import _core, errors, protocol
from embar_shm.errors import (
    AccessDenied,
    CannotListen,
    ConnectionLost,
    EmbarError,
    ProtocolError,
)
from embar_shm.protocol import (
    HEAD_BYTES,
    MAX_CONTROL_BODY,
    TRANSITIONS,
    VERSION,
    BatchHead,
    Connection,
    Frame,
    Hello,
    Kind,
    Role,
    State,
    Welcome,
)

SIZES = {
    Kind.HELLO: 48,
    Kind.CHALLENGE: 32,
    Kind.PROOF: 32,
    Kind.WELCOME: 24,
    Kind.ACK: 8,
    Kind.GOODBYE: 0,
    Kind.SUBSCRIBE: 112,
    Kind.SUBSCRIBED: 40,
    Kind.CREDIT: 16,
    Kind.END: 0,
    Kind.ERROR: 100,
}
CONTROL = tuple(SIZES)
COMBINATIONS = tuple(itertools.product(State, Role, Kind))
ALLOWED = tuple(c for c in COMBINATIONS if c in TRANSITIONS)
FORBIDDEN = tuple(c for c in COMBINATIONS if c not in TRANSITIONS)
OTHER = {Role.PUBLISHER: Role.BROKER, Role.SUBSCRIBER: Role.BROKER}
SUBSCRIBERS = (
    State.ASKED,
    State.ASKED_CHALLENGED,
    State.ASKED_PROVED,
    State.STREAMING,
    State.ENDED,
    State.PARTING,
)


def other(sender: Role, state: State) -> Role:
    """Who hears what `sender` says in this state."""
    return OTHER.get(sender, Role.SUBSCRIBER if state in SUBSCRIBERS else Role.PUBLISHER)


def name(value: object) -> str:
    return getattr(value, "name", str(value)).lower()


def connection(role: Role, state: State) -> Connection:
    found = Connection(role)
    found.state = state
    return found


def receive(receiver: Connection, kind: Kind) -> None:
    """One frame of this kind, well-formed but for where it comes."""
    if kind is Kind.DATA:
        if receiver.role is Role.SUBSCRIBER:
            receiver.delivery(batch_header(1, 64), 4096, 0, reliable=True)
        else:
            receiver.batch(batch_header(1, 64), HELLO, 4096, 0)
        return
    body = bytes(SIZES[kind])
    assert receiver.head(protocol.encode(kind, body)[:HEAD_BYTES]) == (kind, len(body))
    assert receiver.received(kind, body) == Frame(kind, body)


# --- the table ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("state", "sender", "kind"), ALLOWED, ids=name)
def test_what_the_table_allows_is_accepted_and_leads_where_it_says(
    state: State, sender: Role, kind: Kind
) -> None:
    after = TRANSITIONS[state, sender, kind]
    receiver = connection(other(sender, state), state)
    receive(receiver, kind)
    assert receiver.state is after
    if kind is not Kind.DATA:
        ours = connection(sender, state)
        frame = ours.send(kind, bytes(SIZES[kind]))
        assert frame.startswith(protocol.encode(kind, bytes(SIZES[kind])))
        assert ours.state is after


@pytest.mark.parametrize(("state", "sender", "kind"), FORBIDDEN, ids=name)
def test_what_the_table_does_not_allow_is_refused_and_changes_nothing(
    state: State, sender: Role, kind: Kind
) -> None:
    receiver = connection(other(sender, state), state)
    # A broker knows by what is said, and by nothing else, whether a publisher says it.
    senders = OTHER if sender in OTHER else [sender]
    if not any((state, anybody, kind) in TRANSITIONS for anybody in senders):
        with pytest.raises(ProtocolError, match=f"{kind.name} is not allowed .* is {state.value}"):
            receive(receiver, kind)
        with pytest.raises(ProtocolError, match=f"{kind.name} is not allowed .* is {state.value}"):
            receiver.received(kind)
        assert receiver.state is state
    ours = connection(sender, state)
    with pytest.raises(RuntimeError):
        ours.send(kind)
    assert ours.state is state


@pytest.mark.parametrize("state", State, ids=name)
@pytest.mark.parametrize("role", Role, ids=name)
def test_nobody_takes_what_only_he_himself_may_say(role: Role, state: State) -> None:
    own = {kind for s, sender, kind in TRANSITIONS if s is state and sender is role}
    others = {kind for s, sender, kind in TRANSITIONS if s is state and sender is not role}
    for kind in () if role is Role.BROKER and state is State.START else own - others:
        with pytest.raises(ProtocolError):
            receive(connection(role, state), kind)


def test_a_batch_is_never_sent_or_taken_as_a_control_frame() -> None:
    with pytest.raises(RuntimeError, match="slot"):
        connection(Role.PUBLISHER, State.OPEN).send(Kind.DATA)
    head = protocol.encode(Kind.DATA, bytes(10))[:HEAD_BYTES]
    with pytest.raises(ProtocolError, match="DATA came in a control frame"):
        connection(Role.BROKER, State.OPEN).head(head)


def test_every_state_can_be_reached_and_all_but_the_last_can_be_left() -> None:
    assert {State.START, *TRANSITIONS.values()} == set(State)
    assert {state for state, _, _ in TRANSITIONS} == set(State) - {State.CLOSED}


def test_a_whole_conversation_keeps_both_sides_in_the_same_state() -> None:
    publisher, broker = Connection(Role.PUBLISHER), Connection(Role.BROKER)
    conversation = [
        (publisher, Kind.HELLO),
        (broker, Kind.CHALLENGE),
        (publisher, Kind.PROOF),
        (broker, Kind.WELCOME),
        (publisher, Kind.DATA),
        (broker, Kind.ACK),
        (publisher, Kind.GOODBYE),
        (broker, Kind.ACK),
        (broker, Kind.GOODBYE),
    ]
    for sender, kind in conversation:
        receiver = broker if sender is publisher else publisher
        if kind is not Kind.DATA:
            sender.send(kind, bytes(SIZES[kind]))
        receive(receiver, kind)
        assert publisher.state is broker.state
    assert broker.state is State.CLOSED


@contextmanager
def threads_switch_all_the_time() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def test_an_acknowledgement_that_crosses_the_goodbye_does_not_take_it_back() -> None:
    # Here each side's two threads meet: one receives, the other sends.
    with threads_switch_all_the_time():
        for role in 800 * (Role.PUBLISHER, Role.BROKER):
            side = connection(role, State.OPEN)
            publisher = role is Role.PUBLISHER
            acks = threading.Thread(
                target=lambda side=side, publisher=publisher: [
                    side.received(Kind.ACK) if publisher else side.send(Kind.ACK) for _ in range(30)
                ]
            )
            acks.start()
            if publisher:
                side.send(Kind.GOODBYE)
            else:
                side.received(Kind.GOODBYE)
            acks.join()
            assert side.state is State.LEAVING


# --- frames ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CONTROL, ids=name)
def test_a_control_frame_arrives_as_it_was_sent(kind: Kind) -> None:
    state, sender = next((s, r) for s, r, k in TRANSITIONS if k is kind)
    body = bytes(range(SIZES[kind]))
    frame = connection(sender, state).send(kind, body)
    receiver = connection(other(sender, state), state)
    assert receiver.head(frame[:HEAD_BYTES]) == (kind, len(body))
    assert receiver.received(kind, frame[HEAD_BYTES : HEAD_BYTES + len(body)]) == Frame(kind, body)


WRONG_SIZES = [
    (kind, size)
    for kind in CONTROL
    for right in [MAX_CONTROL_BODY if kind is Kind.ERROR else SIZES[kind]]
    for size in (right - 1, right + 1, right + 2**16, 2**32, 2**63)
    if size > right or (size >= 0 and kind is not Kind.ERROR)  # an ERROR may be short
]


@pytest.mark.parametrize(("kind", "size"), WRONG_SIZES, ids=name)
def test_a_body_of_another_size_is_refused_by_its_head(kind: Kind, size: int) -> None:
    state, sender = next((s, r) for s, r, k in TRANSITIONS if k is kind)
    head = struct.pack("<4sHHQ", b"EMBC", kind, VERSION, size)
    with pytest.raises(ProtocolError, match=f"{kind.name} .* {size} bytes"):
        connection(other(sender, state), state).head(head)


def test_a_goodbye_among_batches_has_the_size_of_a_batch_header() -> None:
    goodbye = connection(Role.PUBLISHER, State.OPEN).send(Kind.GOODBYE)
    assert len(goodbye) == _core.BATCH_HEADER_BYTES
    assert protocol.is_goodbye(goodbye)
    assert not protocol.is_goodbye(batch_header(1, 64))
    assert len(connection(Role.BROKER, State.LEAVING).send(Kind.GOODBYE)) == HEAD_BYTES


@pytest.mark.parametrize("position", [0, 4, 6, 8, 16, 127])
def test_a_goodbye_with_another_byte_in_it_is_none(position: int) -> None:
    goodbye = bytearray(connection(Role.PUBLISHER, State.OPEN).send(Kind.GOODBYE))
    goodbye[position] ^= 1
    assert not protocol.is_goodbye(bytes(goodbye))


@given(
    st.builds(
        Hello,
        *(st.integers(0, 2**64 - 1) for _ in range(5)),
        ack=st.integers(0, 2**32 - 1),
        in_flight=st.integers(0, 2**32 - 1),
    )
)
def test_a_hello_arrives_as_it_was_sent(hello: Hello) -> None:
    assert len(hello.pack()) == SIZES[Kind.HELLO]
    assert Hello.unpack(hello.pack()) == hello


@given(st.integers(1, _core.MAX_SLOT_BYTES), st.integers(0, 2**64 - 1))
def test_a_welcome_arrives_as_it_was_sent(slot_bytes: int, received_seq: int) -> None:
    welcome = Welcome(slot_bytes, received_seq)
    assert Welcome.unpack(welcome.pack()) == welcome


@given(st.integers(0, 2**64 - 1))
def test_an_acknowledgement_arrives_as_it_was_sent(seq: int) -> None:
    assert protocol.acked_seq(protocol.ack_body(seq)) == seq


# --- who speaks what ------------------------------------------------------------------------------


@pytest.mark.parametrize("role", Role, ids=name)
@pytest.mark.parametrize("version", [0, VERSION + 1, 65535])
def test_another_version_is_refused_with_both_numbers(role: Role, version: int) -> None:
    kind, state = {
        Role.BROKER: (Kind.HELLO, State.START),
        Role.PUBLISHER: (Kind.WELCOME, State.GREETED),
        Role.SUBSCRIBER: (Kind.SUBSCRIBED, State.ASKED),
    }[role]
    head = struct.pack("<4sHHQ", b"EMBC", kind, version, SIZES[kind])
    with pytest.raises(ProtocolError, match=f"version {version} .* {VERSION}") as caught:
        connection(role, state).head(head)
    assert "same version of embar-shm" in caught.value.hint


@pytest.mark.parametrize(
    ("head", "hint"),
    [
        (b"GET / HTTP/1.1\r\n", "port of an embar-shm broker"),
        (b"HTTP/1.1 400 Bad", "port of an embar-shm broker"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03abcde", "TLS"),
        (b"\x15\x03\x01\x00\x02\x02\x46abcdefghi", "TLS"),
        (b"\x15\x03\x03\x00\x02\x02\x46abcdefghi", "TLS"),
        (bytes(16), "port of an embar-shm broker"),
    ],
    ids=["request", "response", "client hello", "alert", "alert 1.2", "zeros"],
)
def test_another_protocol_is_recognised_and_shown(head: bytes, hint: str) -> None:
    for role in Role:
        with pytest.raises(ProtocolError, match="does not speak this protocol") as caught:
            Connection(role).head(head)
        assert repr(head)[2:10] in caught.value.message
        assert hint in caught.value.hint


def test_a_frame_of_an_unknown_kind_is_refused_with_its_number() -> None:
    for number in (0, 13, 65535):
        with pytest.raises(ProtocolError, match=f"kind {number}"):
            Connection(Role.BROKER).head(struct.pack("<4sHHQ", b"EMBC", number, VERSION, 0))


# --- handshake ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"features": 4}, "features 0x4"),
        ({"max_batch": 4097}, "4097 bytes, the broker's slots 4096"),
        ({"max_batch": 2**64 - 1}, "the broker's slots 4096"),
        ({"in_flight": 0}, "at least one slot"),
        ({"ack": 2}, "level 2"),
    ],
    ids=str,
)
def test_a_publisher_the_broker_cannot_serve_is_told_why(
    changes: dict[str, int], says: str
) -> None:
    hello = Hello(**{"publisher_id": 1, "incarnation": 1, "max_batch": 0} | changes)
    with pytest.raises(ProtocolError, match=says):
        protocol.check_hello(hello, 4096)


def test_a_publisher_the_broker_can_serve_is_not_refused() -> None:
    for max_batch in (0, 16, 4096):
        protocol.check_hello(Hello(2**64 - 1, 0, max_batch, 2**64 - 1, ack=0), 4096)


@pytest.mark.parametrize(
    ("slot_bytes", "features", "says"),
    [
        (0, 0, "slots of 0 bytes"),
        (_core.MAX_SLOT_BYTES + 1, 0, f"slots of {_core.MAX_SLOT_BYTES + 1} bytes"),
        (2**64 - 1, 0, f"slots of {2**64 - 1} bytes"),
        (4096, 2, "features 0x2"),
    ],
)
def test_a_broker_that_makes_no_sense_is_refused(slot_bytes: int, features: int, says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        Welcome.unpack(Welcome(slot_bytes, 0, features).pack())


@given(token=st.text(min_size=1), other=st.text(min_size=1), hello=st.binary(max_size=64))
def test_only_who_knows_the_token_can_prove_it(token: str, other: str, hello: bytes) -> None:
    token, other = (t.encode("utf-8", "replace").decode() for t in (token, other))
    nonce = protocol.new_nonce()
    protocol.check_proof(token, nonce, hello, protocol.prove(token, nonce, hello))
    wrong = [
        protocol.prove(token, protocol.new_nonce(), hello),
        protocol.prove(token, nonce, hello + b"?"),
        bytes(32),
        b"",
    ]
    if other.rstrip("\0") != token.rstrip("\0"):  # HMAC pads a key with zeros
        wrong.append(protocol.prove(other, nonce, hello))
    for proof in wrong:
        with pytest.raises(AccessDenied, match="token is wrong"):
            protocol.check_proof(token, nonce, hello, proof)


def test_no_challenge_comes_twice() -> None:
    nonces = [protocol.new_nonce() for _ in range(100)]
    assert len(set(nonces)) == 100
    assert {len(nonce) for nonce in nonces} == {SIZES[Kind.CHALLENGE]}


# --- batches --------------------------------------------------------------------------------------

AGREED = (HELLO, 4096, 6)  # whose batches, largest body, the batch before


def test_a_batch_that_fits_what_was_agreed_on_is_taken() -> None:
    broker = connection(Role.BROKER, State.OPEN)
    for size in (1, 64, 4096):
        assert broker.batch(batch_header(7, size), *AGREED) == BatchHead(7, 1, 7, size)
    assert broker.state is State.OPEN


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (batch_header(7, 0), "0 bytes, the limit is 4096"),
        (batch_header(7, 4097), "4097 bytes, the limit is 4096"),
        (batch_header(7, 2**32), f"{2**32} bytes, the limit is 4096"),
        (batch_header(7, 2**64 - 1), "the limit is 4096"),
        (batch_header(6, 64), "batch 6 came, batch 7 was expected"),
        (batch_header(8, 64), "batch 8 came, batch 7 was expected"),
        (batch_header(0, 64), "batch 0 came"),
        (batch_header(7, 64, publisher_id=8), "another publisher"),
        (batch_header(7, 64, incarnation=2), "another publisher"),
        (batch_header(7, 64, check=1), "damaged"),
        (batch_header(7, 64, magic=1), "magic 0x1 "),
        (batch_header(7, 64, version=9), "version 9"),
        (bytes(128), "magic 0x0 "),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_batch_that_does_not_fit_is_refused_by_its_header(header: bytes, says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        connection(Role.BROKER, State.OPEN).batch(header, *AGREED)


@given(st.integers(0, 128 * 8 - 1))
def test_a_header_with_one_flipped_bit_is_refused(bit: int) -> None:
    header = bytearray(batch_header(7, 64))
    header[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ProtocolError):
        connection(Role.BROKER, State.OPEN).batch(bytes(header), *AGREED)


# --- errors ---------------------------------------------------------------------------------------

TELLABLE = (
    errors.AccessDenied,
    errors.BatchRefused,
    errors.BrokerGone,
    errors.CorruptSegment,
    errors.NotEnoughSpace,
    errors.ProtocolError,
    errors.WaitTimeout,
)


@pytest.mark.parametrize("kind", TELLABLE)
def test_an_error_is_told_with_its_class_its_text_and_its_hint(kind: type[EmbarError]) -> None:
    told = protocol.error_from("tcp://b:1", protocol.error_body(kind("no room", "make room")))
    assert type(told) is kind
    assert (told.message, told.hint) == ("tcp://b:1 says: no room", "make room")


@pytest.mark.parametrize("kind", [CannotListen, ConnectionLost, EmbarError])
def test_an_error_that_is_nobody_elses_business_is_told_as_a_protocol_error(
    kind: type[EmbarError],
) -> None:
    told = protocol.error_from("it", protocol.error_body(kind("what", "")))
    assert type(told) is ProtocolError
    assert (told.message, told.hint) == ("it says: what", "")


@pytest.mark.parametrize("letter", ["x", "ä", "€", "😀", "\n", "\udc80", "\0"])
def test_a_very_long_error_is_cut_between_letters_and_keeps_its_hint(letter: str) -> None:
    body = protocol.error_body(errors.BrokerGone("a" + letter * 10_000, "do this " + letter * 999))
    assert MAX_CONTROL_BODY * 3 // 4 < len(body) <= MAX_CONTROL_BODY
    told = protocol.error_from("it", body)
    assert type(told) is errors.BrokerGone
    assert told.message.startswith("it says: a")
    assert told.hint.startswith("do this ")
    assert "\ufffd" not in str(told)


def test_an_error_cannot_write_to_the_terminal_what_is_no_text() -> None:
    nasty = "\x1b[2J\x1b]0;title\x07\r\x00\u202egnol\u2066\x7f\x9b1m\u2028end"
    told = protocol.error_from("it", f"BrokerGone\n{nasty}\n{nasty}\nmore".encode())
    assert type(told) is errors.BrokerGone
    assert all(c.isprintable() or c == "\n" for c in str(told))
    assert "[2J" in told.message


@given(st.binary(max_size=MAX_CONTROL_BODY))
def test_whatever_an_error_frame_contains_it_becomes_an_error_that_can_be_shown(
    body: bytes,
) -> None:
    told = protocol.error_from("it", body)
    assert type(told) in TELLABLE
    assert len(told.message) > len("it says: ")
    assert all(c.isprintable() or c == "\n" for c in str(told))


# --- fuzz -----------------------------------------------------------------------------------------


def conversation(token: bool, goodbye: bool) -> dict[Role, bytes]:
    """All that each side sends in a valid conversation."""
    said = {Role.PUBLISHER: b"", Role.BROKER: b""}
    publisher, broker = Connection(Role.PUBLISHER), Connection(Role.BROKER)

    def say(sender: Connection, kind: Kind, body: bytes = b"") -> None:
        said[sender.role] += sender.send(kind, body)
        (broker if sender is publisher else publisher).received(kind, body)

    say(publisher, Kind.HELLO, HELLO.pack())
    if token:
        say(broker, Kind.CHALLENGE, bytes(32))
        say(publisher, Kind.PROOF, protocol.prove("secret", bytes(32), HELLO.pack()))
    say(broker, Kind.WELCOME, Welcome(4096, 0).pack())
    for seq in (1, 2, 3):
        said[Role.PUBLISHER] += batch(seq)
        say(broker, Kind.ACK, protocol.ack_body(seq))
    if goodbye:
        say(publisher, Kind.GOODBYE)
        say(broker, Kind.GOODBYE)
    else:
        say(broker, Kind.ERROR, protocol.error_body(errors.BrokerGone("stopped", "start it")))
    return said


def listen_as(role: Role, data: bytes, token: bool) -> int:
    """Reads `data` as the transport does, saying what has to be said. => frames understood."""
    side = Connection(role)
    understood = seq = at = 0
    if role is Role.PUBLISHER:
        side.send(Kind.HELLO, HELLO.pack())
    while side.state is not State.CLOSED:
        among_batches = role is Role.BROKER and side.state is State.OPEN
        size = _core.BATCH_HEADER_BYTES if among_batches else HEAD_BYTES
        head, at = data[at : at + size], at + size
        if len(head) < size:
            return understood
        if among_batches and protocol.is_goodbye(head):
            side.received(Kind.GOODBYE)
            side.send(Kind.GOODBYE)
        elif among_batches:
            found = side.batch(head, HELLO, 4096, seq)
            seq, at = found.seq, at + found.body_bytes
        else:
            kind, length = side.head(head)
            assert length <= MAX_CONTROL_BODY
            body, at = data[at : at + length], at + length
            if len(body) < length:
                return understood
            side.received(kind, body)
            hear(side, kind, body, token)
        understood += 1
    return understood


def hear(side: Connection, kind: Kind, body: bytes, token: bool) -> None:
    match kind:
        case Kind.HELLO:
            protocol.check_hello(Hello.unpack(body), 4096)
            if token:
                side.send(Kind.CHALLENGE, bytes(32))
            else:
                side.send(Kind.WELCOME, Welcome(4096, 0).pack())
        case Kind.PROOF:
            protocol.check_proof("secret", bytes(32), HELLO.pack(), body)
            side.send(Kind.WELCOME, Welcome(4096, 0).pack())
        case Kind.CHALLENGE:
            side.send(Kind.PROOF, protocol.prove("secret", body, HELLO.pack()))
        case Kind.WELCOME:
            Welcome.unpack(body)
        case Kind.ACK:
            # Once: a damaged acknowledgement may say the same again.
            if protocol.acked_seq(body) == 3 and side.state is State.OPEN:
                side.send(Kind.GOODBYE)
        case Kind.ERROR:
            raise protocol.error_from("it", body)


@pytest.mark.parametrize("token", [False, True], ids=["open", "token"])
def test_a_valid_conversation_is_understood_to_its_end(token: bool) -> None:
    said = conversation(token, goodbye=True)
    assert listen_as(Role.BROKER, said[Role.PUBLISHER], token) == 5 + token
    assert listen_as(Role.PUBLISHER, said[Role.BROKER], token) == 5 + token
    with pytest.raises(errors.BrokerGone, match="stopped"):
        listen_as(Role.PUBLISHER, conversation(token, goodbye=False)[Role.BROKER], token)


@given(
    role=st.sampled_from([Role.PUBLISHER, Role.BROKER]),
    data=st.binary(max_size=400),
    token=st.booleans(),
)
@settings(max_examples=300)
def test_random_bytes_raise_nothing_but_protocol_errors(
    role: Role, data: bytes, token: bool
) -> None:
    try:
        assert listen_as(role, data, token) == 0
    except ProtocolError as error:
        assert error.message


@given(
    role=st.sampled_from([Role.PUBLISHER, Role.BROKER]),
    token=st.booleans(),
    goodbye=st.booleans(),
    cut=st.integers(0, 1200),
    flips=st.lists(st.tuples(st.integers(0, 1200), st.integers(1, 255)), max_size=3),
    insert=st.tuples(st.integers(0, 1200), st.binary(max_size=20)),
)
@example(role=Role.PUBLISHER, token=False, goodbye=False, cut=112, flips=[(80, 1)], insert=(0, b""))
@settings(max_examples=600)
def test_a_damaged_conversation_raises_nothing_but_our_errors(
    role: Role,
    token: bool,
    goodbye: bool,
    cut: int,
    flips: list[tuple[int, int]],
    insert: tuple[int, bytes],
) -> None:
    data = bytearray(conversation(token, goodbye)[other(role, State.OPEN)])
    for at, mask in flips:
        data[at % len(data)] ^= mask
    data[insert[0] : insert[0]] = insert[1]
    try:
        listen_as(role, bytes(data[:cut]), token)
    except EmbarError as error:
        assert error.message
        assert type(error) in TELLABLE
