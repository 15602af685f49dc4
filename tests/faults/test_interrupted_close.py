"""SIGTERM and Ctrl-C in the middle of a clean-up: it is finished first, whoever handles them.

The signals are raised from inside the clean-up itself, at a step of it, so that no run depends on
when they arrive.
"""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from embar_shm.testing import Child, leftovers

# A signal at a step of a broker's end. argv: ring, signal number, step.
PROGRAM = """
import atexit, os, signal, sys, threading
import embar_shm as es
from embar_shm import broker, lifecycle, segment, signals
from embar_shm.address import SHM_DIRECTORY

STEPS = {
    "while it waits for its thread": (broker.Broker, "_end_background"),
    "before the unlink": (segment.Segment, "unlink"),
    "after the unlink": (segment.Segment, "close"),
    "at the very end": (lifecycle, "unregister_broker"),
}

def before(step, action):
    owner, name = STEPS[step]
    original = getattr(owner, name)
    def stepped(*arguments):
        setattr(owner, name, original)  # once
        action()
        return original(*arguments)
    setattr(owner, name, stepped)

def create(number=""):
    return es.Broker.create(sys.argv[1] + number, slots=2, slot_size=4096)
"""

INTERRUPTED = PROGRAM + "before(sys.argv[3], lambda: signal.raise_signal(int(sys.argv[2])))\n"
STEPS = [
    "while it waits for its thread",
    "before the unlink",
    "after the unlink",
    "at the very end",
]
WAYS = {
    "with block": "with create().start(): pass",
    "close": "create().close()",
    "one of two": "with create('a').start(), create('b').start(): pass",
    "error in the with block": "with create(): raise RuntimeError",
}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("way", WAYS)
def test_a_signal_while_a_broker_closes_takes_effect_when_it_is_closed(
    cluster: str, run_child: Callable[..., Child], way: str, step: str, number: signal.Signals
) -> None:
    child = run_child(INTERRUPTED + WAYS[way], f"{cluster}/0", int(number), step)
    ended = 128 + number if number == signal.SIGTERM else -number
    assert child.wait() == ended, child.errors
    assert leftovers(cluster) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("step", STEPS)
def test_a_signal_while_a_program_that_never_closed_exits_leaves_nothing(
    cluster: str, run_child: Callable[..., Child], step: str, number: signal.Signals
) -> None:
    program = INTERRUPTED + "kept = [create('a').start(), create('b')]"
    child = run_child(program, f"{cluster}/0", int(number), step)
    assert child.wait() == 0, child.errors  # it was ending already
    assert leftovers(cluster) == []


def test_a_signal_where_the_exit_functions_begin_leaves_nothing(
    cluster: str, run_child: Callable[..., Child]
) -> None:
    # A native exit function that sets the signal off: its handler runs where the next one begins.
    program = (
        PROGRAM + "import _thread\n"
        "kept = create().start()\n"
        "atexit.register(_thread.interrupt_main, signal.SIGTERM)\n"
    )
    child = run_child(program, f"{cluster}/0")
    assert child.wait() == 0
    assert "SystemExit: 143" in child.errors  # so it did hit an exit function
    assert leftovers(cluster) == []


def test_a_signal_that_another_thread_receives_waits_as_well(
    cluster: str, run_child: Callable[..., Child]
) -> None:
    child = run_child(
        PROGRAM
        + """
reader, writer = os.pipe()
os.set_blocking(writer, False)
signal.set_wakeup_fd(writer)
end = threading.Event()
other = threading.Thread(target=end.wait)
other.start()
def hit_the_other():
    signal.pthread_kill(other.ident, signal.SIGTERM)
    os.read(reader, 1)  # it was received
    end.set()
before("before the unlink", hit_the_other)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # which is not enough
with create():
    pass
""",
        f"{cluster}/0",
    )
    assert child.wait() == 143, child.errors
    assert leftovers(cluster) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_programs_own_handler_is_called_once_and_when_the_ring_is_gone(
    cluster: str, run_child: Callable[..., Child], number: signal.Signals
) -> None:
    own = """
def handler(number, frame):
    ring = sys.argv[1].replace("/", ".")
    print(number, frame is not None, any(ring in name for name in os.listdir(SHM_DIRECTORY)))
    sys.exit(7)
signal.signal(int(sys.argv[2]), handler)
with create():
    pass
"""
    child = run_child(INTERRUPTED + own, f"{cluster}/0", int(number), "before the unlink")
    child.expect(f"{int(number)} True False")
    assert child.wait() == 7, child.errors
    assert leftovers(cluster) == []


def test_a_second_sigterm_ends_a_close_whose_serving_thread_does_not_come_back(
    cluster: str, run_child: Callable[..., Child]
) -> None:
    child = run_child(
        PROGRAM
        + """
noted = signals.Deferral._on_signal
def tell(self, number, frame):
    print("noted")
    noted(self, number, frame)
signals.Deferral._on_signal = tell
before("while it waits for its thread", lambda: print("closing"))
with create() as one:
    one._serving.acquire()  # as a thread that hangs in serve() has it
""",
        f"{cluster}/0",
    )
    child.expect("closing")
    child.signal(signal.SIGTERM)
    child.expect("noted")
    assert len(leftovers(cluster)) == 1  # it waits
    child.signal(signal.SIGTERM)
    assert child.wait() == 143, child.errors
    assert leftovers(cluster) == []


def test_the_exit_of_a_program_waits_for_the_thread_that_closes(
    cluster: str, run_child: Callable[..., Child]
) -> None:
    child = run_child(
        PROGRAM
        + """
closing = threading.Event()
def wait():
    closing.set()
    sys.stdin.readline()
before("before the unlink", wait)
atexit.register(print, "exiting")
threading.Thread(target=create().close, daemon=True).start()
closing.wait()
""",
        f"{cluster}/0",
    )
    child.expect("exiting")
    child.tell()
    assert child.wait() == 0, child.errors
    assert leftovers(cluster) == []


def test_a_signal_handler_may_close_a_broker_that_is_closing(
    cluster: str, run_child: Callable[..., Child]
) -> None:
    child = run_child(
        PROGRAM
        + """
one = create()
signal.signal(signal.SIGUSR1, lambda *_: (one.close(), print("closed in the handler")))
before("before the unlink", lambda: signal.raise_signal(signal.SIGUSR1))
one.close()
""",
        f"{cluster}/0",
    )
    child.expect("closed in the handler")
    assert child.wait() == 0, child.errors


def test_a_fork_in_the_middle_of_a_close_has_the_programs_handlers(
    cluster: str, run_child: Callable[..., Child]
) -> None:
    child = run_child(
        PROGRAM
        + """
def fork():
    signal.raise_signal(signal.SIGTERM)
    if pid := os.fork():
        os.waitpid(pid, 0)
    else:
        print(signal.getsignal(signal.SIGTERM).name)
        print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
        os._exit(0)
before("before the unlink", fork)
with create():
    pass
""",
        f"{cluster}/0",
    )
    child.expect("SIG_DFL")
    child.expect("True")
    assert child.wait() == 143, child.errors


# --- serve ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["begins", "ends"])
def test_ctrl_c_where_serve_begins_or_ends_does_not_leave_it_locked(
    cluster: str, run_child: Callable[..., Child], when: str
) -> None:
    child = run_child(
        PROGRAM
        + """
class Lock:
    def __init__(self, lock):
        self.lock = lock
    def acquire(self, blocking=True):
        got = self.lock.acquire(blocking)
        if sys.argv[2] == "begins" and not blocking:
            signal.raise_signal(signal.SIGINT)
        return got
    def release(self):
        if sys.argv[2] == "ends":
            signal.raise_signal(signal.SIGINT)
        self.lock.release()
one = create()
lock, one._serving = one._serving, Lock(one._serving)
try:
    one.serve(timeout=0)
except KeyboardInterrupt:
    print("interrupted", lock.locked())
one._serving = lock
one.serve(timeout=0)
one.close()
print("closed")
""",
        f"{cluster}/0",
        when,
    )
    child.expect("interrupted False")
    child.expect("closed")
    assert child.wait() == 0, child.errors
