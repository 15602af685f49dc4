"""Plain TCP over loopback, and Unix sockets, with what Python's library offers."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import ClassVar

from peers.peer import Consume, End, Peer, Produce
from peers.workloads import Reader, Workload

# Of a file around a socket, https://docs.python.org/3/library/socket.html#socket.socket.makefile:
# many messages go into a system call, and still each is written and read by itself.
FILE_BUFFER = 256 * 1024


class _Sockets(Peer):
    documentation = "https://docs.python.org/3/library/socket.html"
    family: ClassVar[int]
    kernel_buffer: ClassVar[int]  # bytes, in each direction

    @classmethod
    def settings(cls, work: Workload) -> str:
        if work.kind == "batches":
            threads = ", a thread per connection" if work.each > 1 else ""
            buffers = f"socket buffers of {cls.kernel_buffer >> 10} KiB"
            return f"sendall, recv_into with MSG_WAITALL{threads}; {buffers}"
        if work.kind == "messages":
            return "makefile with a buffer of 256 KiB; write and read per message"
        how = "recv_into, MSG_DONTWAIT" if work.spin else "recv_into"
        return f"send, {how}" + (", TCP_NODELAY" if cls.family == socket.AF_INET else "")

    def prepare(self) -> None:
        # Connecting needs nobody who accepts: the listeners are there before anybody else.
        self.listeners = [self._listen(index) for index in range(self.work.consumers)]

    def clean(self) -> None:
        for listener in self.listeners:
            listener.close()

    def _listen(self, index: int) -> socket.socket:
        listener = socket.socket(self.family)
        if self.family == socket.AF_UNIX:
            listener.bind(str(self.directory / f"{index}.socket"))
        else:
            listener.bind(("127.0.0.1", 0))
        listener.listen(self.work.each)
        return listener

    def _connect(self, index: int) -> socket.socket:
        sock = socket.socket(self.family)
        self._set(sock)
        sock.connect(self.listeners[index].getsockname())
        return sock

    def _accept(self, index: int) -> socket.socket:
        sock, _ = self.listeners[index].accept()
        self._set(sock)
        return sock

    def _set(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.kernel_buffer)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.kernel_buffer)
        if self.family == socket.AF_INET and self.work.kind != "messages":
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @contextmanager
    def producer(self, index: int) -> Iterator[Produce]:
        message = self.message
        with self._connect(index % self.work.consumers) as sock:
            if self.work.kind == "batches":

                def produce(count: int) -> None:
                    for _ in range(count):
                        sock.sendall(message)

                yield produce
                return

            with sock.makefile("wb", buffering=FILE_BUFFER) as stream:

                def produce(count: int) -> None:
                    for _ in range(count):
                        stream.write(message)
                    stream.flush()

                yield produce

    @contextmanager
    def consumer(self, index: int) -> Iterator[Consume]:
        with ExitStack() as stack:
            connected: list[Callable[[int], int]] = []
            pool = stack.enter_context(ThreadPoolExecutor(self.work.each))

            def consume(count: int) -> int:
                if not connected:  # now the producers are there
                    for _ in range(self.work.each):
                        sock = stack.enter_context(self._accept(index))
                        connected.append(self._taker(sock, stack))
                if len(connected) == 1:
                    return connected[0](count)
                each = count // len(connected)
                return sum(pool.map(lambda take: take(each), connected))

            yield consume

    def _taker(self, sock: socket.socket, stack: ExitStack) -> Callable[[int], int]:
        size = self.work.size
        if self.work.kind == "batches":
            batch, read = bytearray(size), Reader(size)

            def take_batches(count: int) -> int:
                total = 0
                for _ in range(count):
                    if sock.recv_into(batch, size, socket.MSG_WAITALL) != size:
                        raise EOFError("the connection ended within a batch")
                    total += read(batch)
                return total

            return take_batches

        stream = stack.enter_context(sock.makefile("rb", buffering=FILE_BUFFER))

        def take_messages(count: int) -> int:
            total = 0
            for _ in range(count):
                total += len(stream.read(size))
            return total

        return take_messages

    @contextmanager
    def end(self, index: int) -> Iterator[End]:
        message, size, buffer = self.message, self.work.size, bytearray(self.work.size)
        with self._connect(0) if index == 0 else self._accept(0) as sock:

            def send() -> object:
                return sock.send(message)

            def receive() -> int:
                return sock.recv_into(buffer, size, socket.MSG_WAITALL)

            def receive_spinning() -> int:
                while True:
                    try:
                        return sock.recv_into(buffer, size, socket.MSG_DONTWAIT)
                    except BlockingIOError:
                        pass

            yield send, receive_spinning if self.work.spin else receive


class Tcp(_Sockets):
    """TCP over loopback."""

    name = "tcp"
    family = socket.AF_INET
    kernel_buffer = (
        208 * 1024
    )  # best of autotuning, 208 KiB, 512 KiB, 1 and 2 MiB; granted anywhere


class Unix(_Sockets):
    """Unix sockets."""

    name = "unix"
    family = socket.AF_UNIX
    kernel_buffer = 512 * 1024  # best of 208 KiB, 512 KiB, 1 and 2 MiB, if the kernel grants it
