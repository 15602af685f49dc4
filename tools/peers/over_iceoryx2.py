"""Eclipse iceoryx2: samples loaned from shared memory, written and read where they are."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from peers.peer import Consume, End, Peer, Produce
from peers.workloads import Reader, Workload

HELD = 4  # batches in a subscriber's buffer
SMALL = 1024  # small messages in it
WAIT = 30.0  # seconds until both ends know each other


class Iceoryx2(Peer):
    """A publish-subscribe service per consumer, and an event service where a receiver sleeps."""

    name = "iceoryx2"
    distribution = "iceoryx2"
    module = "iceoryx2"
    # Samples loaned as slices, and events next to them for who wants to sleep:
    documentation = (
        "https://github.com/eclipse-iceoryx/iceoryx2/tree/main/examples/python/"
        "publish_subscribe_dynamic_data and event_based_communication"
    )

    @classmethod
    def settings(cls, work: Workload) -> str:
        if work.kind == "batches":
            how = f"an event per sample, subscriber_max_buffer_size {HELD}"
        elif work.kind == "messages":
            how = f"receive() in a loop, subscriber_max_buffer_size {SMALL}"
        else:
            how = "receive() in a loop" if work.spin else "an event per sample, blocking_wait"
        return f"loan_slice_uninit, no overflow, RetryUntilDelivered; {how}"

    @contextmanager
    def _node(self) -> Iterator[Any]:
        import iceoryx2 as iox2

        iox2.set_log_level(iox2.LogLevel.Error)
        config = iox2.config.default()
        config.global_cfg.prefix = iox2.FileName.new(f"{self.tag}_")
        config.global_cfg.root_path = iox2.Path.new(str(self.directory))
        builder = iox2.NodeBuilder.new().config(config)
        builder = builder.signal_handling_mode(iox2.SignalHandlingMode.Disabled)
        node = builder.create(iox2.ServiceType.Ipc)
        yield node

    def _services(self, node: Any, name: str) -> tuple[Any, Any]:
        import iceoryx2 as iox2

        service = (
            node.service_builder(iox2.ServiceName.new(name))
            .publish_subscribe(iox2.Slice[ctypes.c_uint8])
            .enable_safe_overflow(False)
            .subscriber_max_buffer_size(SMALL if self.work.kind == "messages" else HELD)
            .max_publishers(self.work.each)
            .max_nodes(self.work.each + 1)
            .open_or_create()
        )
        event = node.service_builder(iox2.ServiceName.new(name)).event()
        return service, event.max_notifiers(self.work.each).open_or_create()

    def _publisher(self, service: Any) -> Any:
        import iceoryx2 as iox2

        return (
            service.publisher_builder()
            .initial_max_slice_len(self.work.size)
            .backpressure_strategy(iox2.BackpressureStrategy.RetryUntilDelivered)
            .create()
        )

    def _send(self, publisher: Any) -> Callable[[], object]:
        """Loans a sample, writes the message into it, and sends it."""
        loan, message, size = publisher.loan_slice_uninit, self.message, self.work.size

        def send() -> object:
            sample = loan(size)
            ctypes.memmove(sample.payload_ptr, message, size)
            return sample.assume_init().send()

        return send

    @property
    def _sleeps(self) -> bool:
        return self.work.kind == "batches" or (self.work.kind == "trips" and not self.work.spin)

    def _take(self, subscriber: Any, listener: Any) -> Callable[[], Any]:
        """Takes the next sample."""
        receive, wait = subscriber.receive, listener.blocking_wait

        def take_spinning() -> Any:
            while (sample := receive()) is None:
                pass
            return sample

        def take_sleeping() -> Any:
            while (sample := receive()) is None:
                wait()
            return sample

        return take_sleeping if self._sleeps else take_spinning

    @contextmanager
    def producer(self, index: int) -> Iterator[Produce]:
        with self._node() as node:
            service, event = self._services(node, str(index % self.work.consumers))
            publisher, notifier = self._publisher(service), event.notifier_builder().create()
            send, notify = self._send(publisher), notifier.notify

            def produce(count: int) -> None:
                for _ in range(count):
                    send()
                    notify()

            def produce_messages(count: int) -> None:
                for _ in range(count):
                    send()

            yield produce if self._sleeps else produce_messages

    @contextmanager
    def consumer(self, index: int) -> Iterator[Consume]:
        read = Reader(self.work.size)
        with self._node() as node:
            service, event = self._services(node, str(index))
            listener = event.listener_builder().create()
            subscriber = service.subscriber_builder().create()
            take = self._take(subscriber, listener)

            def consume(count: int) -> int:
                total = 0
                for _ in range(count):
                    sample = take()
                    total += read(sample.payload().as_memory_view())
                return total

            def consume_messages(count: int) -> int:
                total = 0
                for _ in range(count):
                    total += take().payload().len()
                return total

            yield consume if self.work.kind == "batches" else consume_messages

    @contextmanager
    def end(self, index: int) -> Iterator[End]:
        with self._node() as node:
            there, there_event = self._services(node, f"to {1 - index}")
            back, back_event = self._services(node, f"to {index}")
            listener = back_event.listener_builder().create()
            subscriber = back.subscriber_builder().create()
            publisher, notifier = self._publisher(there), there_event.notifier_builder().create()
            self._wait_for_a_subscriber(there)
            put, notify = self._send(publisher), notifier.notify
            take = self._take(subscriber, listener)

            def send_and_notify() -> object:
                put()
                return notify()

            def receive() -> int:
                return int(take().payload().len())

            yield send_and_notify if self._sleeps else put, receive

    @staticmethod
    def _wait_for_a_subscriber(service: Any) -> None:
        deadline = time.monotonic() + WAIT
        while not service.dynamic_config.number_of_subscribers:
            if time.monotonic() > deadline:
                raise TimeoutError(f"no subscriber appeared for {WAIT:g} s")
            time.sleep(0.001)
