"""Makes the failures that docs/faq.md shows, and prints what somebody sees of them.

python failures.py NAME; the sandbox of the documents' tests has to be around it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psutil

import embar_shm as es
from embar_shm.address import RingName
from embar_shm.testing import Child, wait_until

NAME = "demo/0"
URL = f"shm://{NAME}"
SEGMENT = RingName.parse(NAME).path
BROKER = """
    import sys
    import embar_shm as es
    with es.Broker.create("demo/0", slots=4, slot_size=4096) as broker:
        print("ready", flush=True)
        broker.serve()
"""


def show(error: BaseException) -> None:
    """As a traceback ends."""
    kind = type(error)
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    print(f"{module}{kind.__qualname__}: {error}")


def stop(child: Child) -> None:
    """As Ctrl-Z does. It may have run on for a moment."""
    child.signal(signal.SIGSTOP)
    process = psutil.Process(child.pid)
    wait_until(lambda: process.status() == psutil.STATUS_STOPPED, "the process is stopped")


@contextmanager
def broker() -> Iterator[Child]:
    """A broker in a process of its own."""
    with Child(BROKER) as child:
        child.expect("ready")
        yield child
        child.signal(signal.SIGTERM)
        child.wait()


@contextmanager
def dead_broker() -> Iterator[None]:
    """What a broker leaves that was killed."""
    with Child(BROKER) as child:
        child.expect("ready")
        child.kill()
    yield
    with es.Broker.create(NAME, replace_dead=True):
        pass


def full() -> None:
    """A ring that does not fit into /dev/shm, in a container that has Docker's default."""
    subprocess.run(["mount", "-o", "remount,size=64m", "/dev/shm"], check=True)
    try:
        es.Broker.create(NAME, slots=64)
    except es.NotEnoughSpace as error:
        show(error)


def left_behind() -> None:
    """The name is taken by what a killed broker left."""
    with dead_broker():
        try:
            es.Broker.create(NAME)
        except es.BrokerExists as error:
            show(error)


def left_behind_to_publisher() -> None:
    with dead_broker():
        connect()


def other_user() -> None:
    """As somebody who is neither the owner nor root.

    There may be no other user here: it is root without its capabilities, and with another number.
    """
    with broker():
        SEGMENT.chmod(0)
        command = [sys.executable, __file__, "connect_as_another"]
        subprocess.run(["setpriv", "--bounding-set=-all", "--inh-caps=-all", *command], check=True)


def connect() -> None:
    """Fails."""
    try:
        es.Publisher.connect(URL)
    except es.EmbarError as error:
        show(error)


def connect_as_another() -> None:
    os.geteuid = lambda: 1001
    connect()


def stopped_publisher() -> None:
    """A publisher that was stopped with open batches, seen by another one."""
    program = """
        import os, signal
        import embar_shm as es
        pubs = [es.Publisher.connect("shm://demo/0", linger_ms=0) for _ in range(4)]
        for pub in pubs:
            pub.publish(b"the first message of a batch")
        print("open", flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)
    """
    with broker(), Child(program) as stopped:
        stopped.expect("open")
        with es.Publisher.connect(URL, timeout=1) as pub:
            try:
                pub.publish(b"a message")
            except es.WaitTimeout as error:
                show(error)
        stopped.kill()


def broker_killed() -> None:
    """With batches that nobody has acknowledged yet."""
    with Child(BROKER) as child:
        child.expect("ready")
        pub = es.Publisher.connect(URL)
        pub.publish(b"a message")
        pub.wait_acked()
        stop(child)
        pub.publish(b"another message")
        pub.flush()
        child.kill()
        try:
            pub.wait_acked()
        except es.BrokerGone as error:
            show(error)
        with suppress(es.BrokerGone):
            pub.close()
    with es.Broker.create(NAME, replace_dead=True):
        pass


def broker_stopped() -> None:
    """Alive, but it does not get on: stopped by a debugger, say."""
    with broker() as child, es.Publisher.connect(URL) as pub:
        stop(child)
        pub.publish(b"a message")
        try:
            pub.wait_acked(timeout=1)
        except es.WaitTimeout as error:
            show(error)
        child.signal(signal.SIGCONT)


def forked() -> None:
    with broker(), es.Publisher.connect(URL) as pub:
        child = os.fork()
        if child == 0:
            try:
                pub.publish(b"a message")
            except es.ClosedError as error:
                show(error)
            sys.stdout.flush()
            os._exit(0)
        os.waitpid(child, 0)


def view_alive() -> None:
    """An array over a reservation that has ended."""
    import numpy as np

    with broker(), es.Publisher.connect(URL) as pub:
        try:
            with pub.reserve(64) as view:
                array = np.frombuffer(view, np.uint8)
        except BufferError as error:
            show(error)
            del array


def other_version() -> None:
    """A broker of a version whose segments look different."""
    with broker():
        with SEGMENT.open("r+b") as file:
            file.seek(8)
            version = int.from_bytes(file.read(4), "little")
            file.seek(8)
            file.write((version + 1).to_bytes(4, "little"))
        connect()


def table_full() -> None:
    with es.Broker.create(NAME, max_publishers=1).start(), es.Publisher.connect(URL):
        connect()


def slow_subscriber() -> None:
    """It does not take its batches, and publishers run out of slots."""
    with (
        broker(),
        es.Subscriber.connect(URL, name="report"),
        es.Publisher.connect(URL, in_flight=4, timeout=1) as pub,
    ):
        try:
            for _ in range(5):
                pub.publish(bytes(4000))
                pub.flush()
        except es.WaitTimeout as error:
            show(error)


def holds_everything() -> None:
    """A subscriber that keeps all batches, and waits for another one."""
    with (
        broker(),
        es.Subscriber.connect(URL) as sub,
        es.Publisher.connect(URL, in_flight=4) as pub,
    ):
        batches = []
        for _ in range(4):
            pub.publish(bytes(4000))
            pub.flush()
            batches.append(sub.next(timeout=30))
        try:
            sub.next(timeout=1)
        except es.WaitTimeout as error:
            show(error)
        for batch in batches:
            batch.release()


def nothing_comes() -> None:
    with broker(), es.Subscriber.connect(URL) as sub, es.Publisher.connect(URL, linger_ms=0) as pub:
        pub.publish(b"in a batch that nobody flushes")
        try:
            sub.next(timeout=1)
        except es.WaitTimeout as error:
            show(error)


def not_admitted() -> None:
    """A broker that was created, and does not serve."""
    with es.Broker.create(NAME):
        program = """
            import embar_shm as es
            import embar_shm.transports.shm
            embar_shm.transports.shm._ADMISSION = 1  # the documents' tests have no 10 s for this
            try:
                es.Subscriber.connect("shm://demo/0")
            except es.WaitTimeout as error:
                print(str(error).replace(chr(10), chr(13)))
        """
        with Child(program) as child:
            print(f"embar_shm.errors.WaitTimeout: {child.read()}".replace("\r", "\n"))
            child.wait()


def position_lost() -> None:
    with broker(), es.Publisher.connect(URL) as pub:
        for _ in range(9):
            pub.publish(bytes(4000))
            pub.flush()
        pub.wait_acked()
        connect_subscriber(start=2)


def broker_restarted() -> None:
    """A place in the log of the broker before."""
    with broker(), es.Subscriber.connect(URL) as sub:
        position = sub.position
    with broker():
        connect_subscriber(start=position)


def connect_subscriber(start: int | es.Position) -> None:
    """Fails."""
    try:
        es.Subscriber.connect(URL, start=start)
    except es.EmbarError as error:
        show(error)


def subscribed_to_killed() -> None:
    with Child(BROKER) as child:
        child.expect("ready")
        sub = es.Subscriber.connect(URL)
        with es.Publisher.connect(URL) as pub:
            pub.publish(b"a message")
            pub.wait_acked()
            child.kill()
            with suppress(es.BrokerGone):
                pub.close()
        print(f"read {sub.next().count} message")
        try:
            sub.next()
        except es.BrokerGone as error:
            show(error)
        sub.close()
    with es.Broker.create(NAME, replace_dead=True):
        pass


def batch_view_alive() -> None:
    import numpy as np

    with broker(), es.Subscriber.connect(URL) as sub, es.Publisher.connect(URL) as pub:
        pub.publish(bytes(64))
        pub.flush()
        batch = sub.next(timeout=30)
        array = batch.array(np.uint8)
        try:
            batch.release()
        except BufferError as error:
            show(error)
        del array


if __name__ == "__main__":
    failure: Callable[[], None] = globals()[sys.argv[1]]
    failure()
