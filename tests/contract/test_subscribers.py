"""Shared memory and TCP pass the contract of subscribers."""

from __future__ import annotations

import os

import embar_shm as es
from embar_shm import transports
from embar_shm.net import parse_endpoint
from embar_shm.testing import SubscriberContract
from embar_shm.transports.base import ListenOptions
from embar_shm.transports.tcp_listener import Limits, TcpListener


class TestSharedMemory(SubscriberContract):
    scheme = "shm"


class TestTcp(SubscriberContract):
    scheme = "tcp"

    def listen(self, broker: es.Broker, address: str | None = None) -> transports.Listener:
        endpoint = parse_endpoint(address or "127.0.0.1:0")
        limits = Limits(forget_after=0.3, housekeeping=0.05)
        return TcpListener(broker, endpoint, ListenOptions(), limits)

    def vacant(self, name: str) -> str:  # noqa: ARG002 - what counts is where it listens
        return ".".join(["127", *(str(1 + byte % 250) for byte in os.urandom(3))]) + ":7400"
