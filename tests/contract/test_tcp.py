"""TCP passes the contract of transports."""

from __future__ import annotations

from embar_shm.testing import TransportContract


class TestTcp(TransportContract):
    scheme = "tcp"
