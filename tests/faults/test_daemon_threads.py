"""A program may end while its daemon threads are in our calls: it ends in good order all the same.
And with participants open that keep one another waiting.

CPython before 3.14 ends a thread that comes back into Python while the interpreter is finalized, by
unwinding its stack. Through native code that is std::terminate: SIGABRT instead of exit code 0.
"""

from __future__ import annotations

import ctypes
import socket
import subprocess
import sys
from collections.abc import Callable

import pytest

from embar_shm.testing import Child, leftovers, wait_until

# The thread comes back from its native call when the interpreter is finalized already: modules are
# cleared then, which calls __del__, and select() leaves the thread the GIL.
IN_A_NATIVE_CALL = r"""
import builtins, os, select, socket, threading
from embar_shm import _core

ours, theirs = socket.socketpair()
never, _kept = os.pipe()

class Last:
    def __init__(self):
        self.end, self.close = ours.detach(), os.close
        self.never, self.wait = never, select.select
        self.write = os.write
    def __del__(self):
        self.close(self.end)
        self.wait([self.never], [], [], 0.3)  # the time it has to come back
        self.write(1, b"gone\n")

reading = threading.Event()
def read():
    reading.set()
    _core.tcp_receive_loop(theirs.fileno(), bytearray(8), [0], 8)

threading.Thread(target=read, daemon=True).start()
reading.wait()
builtins.last = Last()  # cleared whatever the threads still refer to
"""

# argv: port. The thread comes back when there is no interpreter any more: the functions of
# Py_AtExit run then, the last one first.
WITHOUT_AN_INTERPRETER = """
import ctypes, socket, sys, threading
from embar_shm import _core

there = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
libc = ctypes.CDLL(None)
for function in (libc.getchar, libc.malloc_stats):  # which waits, which tells
    ctypes.pythonapi.Py_AtExit(ctypes.cast(function, ctypes.c_void_p))
read = (there.fileno(), bytearray(8), [0], 8)
threading.Thread(target=_core.tcp_receive_loop, args=read, daemon=True).start()
there.send(b"x")
there.detach()
"""

# 3.12 and later: a thread calls Python from within a native call, by the buffer of a message.
IN_A_BUFFER = """
import builtins, select, sys, threading, os
import embar_shm as es

never, _kept = os.pipe()
inside = threading.Event()

class Message:
    def __buffer__(self, flags):
        inside.set()
        while True:
            select.select([], [], [], 0.001)

class Last:
    def __init__(self):
        self.never, self.wait = never, select.select
    def __del__(self):
        self.wait([self.never], [], [], 0.3)

broker = es.Broker.create(sys.argv[1], slots=2, slot_size=4096)
publisher = es.Publisher.connect(broker.address)
threading.Thread(target=publisher.publish, args=(Message(),), daemon=True).start()
inside.wait()
builtins.last = Last()
"""

# argv: ring. The subscriber reads nothing: the log is full, close() of a publisher would wait.
NOBODY_READS = """
import atexit, sys
atexit.register(lambda: print(broker.stats().messages))  # when all are closed
import embar_shm as es
from embar_shm.testing import wait_until

broker = es.Broker.create(sys.argv[1], slots=2, slot_size=4096).start()
address = broker.listen("tcp://127.0.0.1:0").address
subscriber = es.Subscriber.connect(broker.address)
publishers = [es.Publisher.connect(address, message_size=4096, timeout=5) for _ in range(3)]
for publisher in publishers:
    publisher.publish(bytes(4096))
wait_until(lambda: broker.stats().messages == 2, "the ring is full")
"""

# argv: ring. Each thread is closed by the end of the program, raises, and drops what it had.
CLOSED_AT_THE_END = """
import sys, threading
import embar_shm as es

broker = es.Broker.create(sys.argv[1], slots=4, slot_size=4096)
ready = threading.Barrier(5)

def publish():
    with es.Publisher.connect("shm://" + sys.argv[1], timeout=None) as publisher:
        ready.wait()
        while True:
            publisher.publish(bytes(4000))

def subscribe():
    subscriber = es.Subscriber.connect("shm://" + sys.argv[1])
    ready.wait()
    for batch in subscriber:
        batch.release()

threading.excepthook = lambda args: None  # ClosedError, as it should be
serving = threading.Thread(target=broker.serve, daemon=True)
for body in ENTRIES:
    threading.Thread(target=body, daemon=True).start()
serving.start()
ready.wait()
"""


def test_a_thread_in_a_native_call_does_not_abort_a_program_that_ends(
    run_child: Callable[..., Child],
) -> None:
    child = run_child(IN_A_NATIVE_CALL)
    child.expect("gone")
    assert child.wait() == 0, child.errors
    assert child.errors == ""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_stats"), reason="needs glibc")
def test_a_thread_that_comes_back_when_the_interpreter_is_gone_stays_where_it_is(
    run_child: Callable[..., Child],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        child = run_child(WITHOUT_AN_INTERPRETER, server.getsockname()[1])
        ours, _ = server.accept()
        with ours:
            assert ours.recv(1) == b"x"
            wait_until(lambda: "Arena" in child.errors, "the interpreter is gone")
    with pytest.raises(subprocess.TimeoutExpired):  # the time it has to come back
        child.process.wait(0.3)
    child.tell()
    assert child.wait() == 0, child.errors


@pytest.mark.skipif(sys.version_info < (3, 12), reason="buffers are native before Python 3.12")
def test_a_message_written_in_python_does_not_abort_a_program_that_ends(
    cluster: str, run_child: Callable[..., Child]
) -> None:
    child = run_child(IN_A_BUFFER, f"{cluster}/0")
    assert child.wait() == 0, child.errors
    assert leftovers(cluster) == []


def test_a_subscriber_that_does_not_read_keeps_no_publisher_of_a_program_that_ends_waiting(
    cluster: str, run_child: Callable[..., Child]
) -> None:
    child = run_child(NOBODY_READS, f"{cluster}/0")
    assert child.wait() == 0, child.errors
    assert "WaitTimeout" not in child.errors
    child.expect("3")


@pytest.mark.parametrize("body", ["publish", "subscribe"])
def test_threads_of_participants_do_not_abort_a_program_that_ends(
    cluster: str, run_child: Callable[..., Child], body: str
) -> None:
    for _ in range(5):  # it is a race: four threads come back while the main one goes
        child = run_child(CLOSED_AT_THE_END.replace("ENTRIES", f"[{body}] * 4"), f"{cluster}/0")
        assert child.wait() == 0, child.errors
        assert "terminate" not in child.errors
        assert leftovers(cluster) == []
