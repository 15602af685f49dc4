"""One broker in a process of `supervisor` (``python -m embar_shm.service.child``).

Reads its configuration, a JSON object, from stdin and then tells what happens as JSON objects, one
a line, on stdout: the methods of `Audience`, and the error that ended it. Ends on SIGTERM in good
order; when its parent is killed so is it, and its ring stays for the next one.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from embar_shm import _core
from embar_shm.config.brokers import BrokerConfig
from embar_shm.errors import EmbarError
from embar_shm.service.serving import Report, serve

__all__ = ["main"]


def main() -> None:
    """Is what it reads."""
    spec = json.load(sys.stdin)
    # Not in good order: that would unlink the ring. It stays, for whoever starts the brokers again.
    _core.die_with_parent(spec["parent"], signal.SIGKILL)
    config = BrokerConfig.model_validate(spec["config"])
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format=f"{config.name}: %(message)s")
    try:
        # patient: a service manager and our parent may both tell us to end
        serve(config, _Parent(), spec["period"], patient=True)
    except EmbarError as error:
        _say("error", kind=type(error).__name__, message=error.message, hint=error.hint)
        sys.exit(error.exit_code)


class _Parent:
    """The audience is at the other end of a pipe."""

    def ready(self, addresses: Mapping[str, list[str]]) -> None:
        _say("ready", addresses=addresses)

    def recovered(self, name: str, recovery: Mapping[str, Any]) -> None:
        _say("recovered", name=name, recovery=recovery)

    def goes_on(self, name: str, seconds: float, since_start: float) -> None:
        _say("goes_on", name=name, seconds=seconds, since_start=since_start)

    def alive(self) -> None:
        _say("alive")

    def stopping(self, why: str) -> None:
        """The parent knows, or will hear why."""

    def ended(self, reports: Mapping[str, Report]) -> None:
        _say("ended", reports=reports)


def _say(event: str, **fields: Any) -> None:
    with suppress(BrokenPipeError):  # the parent is gone: we have been told to end
        sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
