"""A program may end while its daemon threads are in our calls: it ends in good order all the same.

CPython before 3.14 ends a thread that comes back into Python while the interpreter is finalized, by
unwinding its stack. Through native code that is std::terminate: SIGABRT instead of exit code 0.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from embar_shm.testing import Child, leftovers

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


@pytest.mark.parametrize("body", ["publish", "subscribe"])
def test_threads_of_participants_do_not_abort_a_program_that_ends(
    cluster: str, run_child: Callable[..., Child], body: str
) -> None:
    for _ in range(5):  # it is a race: four threads come back while the main one goes
        child = run_child(CLOSED_AT_THE_END.replace("ENTRIES", f"[{body}] * 4"), f"{cluster}/0")
        assert child.wait() == 0, child.errors
        assert "terminate" not in child.errors
        assert leftovers(cluster) == []
