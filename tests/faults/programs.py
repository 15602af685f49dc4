"""Programs that tests run, stop and kill."""

from __future__ import annotations

__all__ = ["BUSY"]

BUSY = """
import sys
import embar_shm as es

pub = es.Publisher.connect(sys.argv[1], message_size=1024, linger_ms=0, in_flight=2)
print("publishing")
while True:
    pub.publish(bytes(1024))
"""
