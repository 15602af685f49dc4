"""``embar-shm broker``: brokers in the foreground, for publishers of this and other machines."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from embar_shm.cli import render_broker
from embar_shm.cli.flags import key_option
from embar_shm.config.brokers import BROKER_KEYS, load_broker, load_brokers
from embar_shm.sd_notify import Notifier
from embar_shm.service.serving import Report, serve
from embar_shm.service.supervisor import supervise

__all__ = ["broker_command"]

_Command = TypeVar("_Command", bound=Callable[..., Any])


def _key_options(command: _Command) -> _Command:
    for key in reversed(BROKER_KEYS):
        if key.name != "name":
            command = key_option(key)(command)
    return command


@click.command("broker")
@click.argument("name", metavar="[CLUSTER/BROKER]", required=False)
@click.option(
    "--config",
    "file",
    metavar="PATH",
    help="A YAML file with one or several brokers, instead of the name of one. Shown above.",
)
@_key_options
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print JSON objects, a line each: when ready, with what was recovered, and at the end; "
    "in between, when the first batch was accepted after a recovery.",
)
def broker_command(name: str | None, file: str | None, as_json: bool, **flags: Any) -> None:
    """Run a broker until Ctrl-C or SIGTERM, then print what it did.

    It goes on with the ring of a broker that was killed, if there is one of this name: nothing that
    was acknowledged is lost, and who is connected stays connected.

    Prints the addresses that publishers and subscribers can use once it is ready. Those of this
    machine use shm://CLUSTER/BROKER; what comes in over --listen ends up in the same ring.

    With --config it runs the brokers of a file, each in a process of its own. The keys are the
    flags without the dashes, and each broker has a name; keys outside the list are for all of them,
    and flags override both:

    \b
        slots: 16
        token_file: /etc/embar/token
        brokers:
          - name: demo/0
            listen: tcp://0.0.0.0:7400
          - name: demo/1
            listen: [tcp://0.0.0.0:7401, tcp://0.0.0.0:7402]
            slot_size: 4MiB

    When one of them does not start, or ends by itself, the others are ended, too, and the exit code
    is not 0. A service manager that sets NOTIFY_SOCKET (systemd: Type=notify) is told when all are
    ready and when the end begins, and, with WatchdogSec, as long as all of them respond.
    """
    if (name is None) == (file is None):
        raise click.UsageError("give either CLUSTER/BROKER or --config PATH")
    notifier = Notifier.take()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    if name is not None:
        audience = _One(notifier, as_json)
        serve(load_broker(name, flags), audience, notifier.watchdog_period)
        return
    configs = load_brokers(str(file), flags)
    several = _Several(notifier, as_json)
    if len(configs) == 1:
        serve(configs[0], several, notifier.watchdog_period)
    else:
        supervise(configs, several, notifier.watchdog_period)


class _One:
    """Prints for the user of one broker, and tells the service manager."""

    def __init__(self, notifier: Notifier, as_json: bool) -> None:
        self._notifier = notifier
        self._as_json = as_json
        self._is_ready = False
        self._recovered: dict[str, Mapping[str, Any]] = {}  # by name, until all are ready

    def ready(self, addresses: Mapping[str, list[str]]) -> None:
        self._show_ready(addresses)
        self._is_ready = True
        self._notifier.ready(f"serving {', '.join(addresses)}")

    def recovered(self, name: str, recovery: Mapping[str, Any]) -> None:
        if not self._as_json:
            render_broker.recovered(name, recovery)
        elif self._is_ready:  # one of several was started again
            render_broker.json_line({"recovered": {"name": name, **recovery}})
        else:
            self._recovered[name] = recovery

    def goes_on(self, name: str, seconds: float, since_start: float) -> None:
        if self._as_json:
            found = {"name": name, "seconds": seconds, "since_process_start": since_start}
            render_broker.json_line({"first_accept": found})
        else:
            render_broker.goes_on(name, seconds, since_start)

    def alive(self) -> None:
        self._notifier.alive()

    def stopping(self, why: str) -> None:
        self._notifier.stopping(why)

    def ended(self, reports: Mapping[str, Report]) -> None:
        self._show_ended(reports)

    def _show_ready(self, addresses: Mapping[str, list[str]]) -> None:
        ((name, own),) = addresses.items()
        if self._as_json:
            render_broker.json_line(self._ready_object(name, own))
        else:
            render_broker.ready(own)

    def _ready_object(self, name: str, addresses: list[str]) -> dict[str, Any]:
        found: dict[str, Any] = {"addresses": addresses}
        if (recovery := self._recovered.get(name)) is not None:
            found["recovered"] = recovery
        return found

    def _show_ended(self, reports: Mapping[str, Report]) -> None:
        (report,) = reports.values()
        if self._as_json:
            render_broker.json_line(report)
        else:
            render_broker.ended(report["stats"])


class _Several(_One):
    """The same for the brokers of a file, each with its name."""

    def _show_ready(self, addresses: Mapping[str, list[str]]) -> None:
        if self._as_json:
            found = {name: self._ready_object(name, own) for name, own in addresses.items()}
            render_broker.json_line({"brokers": found})
        else:
            render_broker.ready([address for own in addresses.values() for address in own])

    def _show_ended(self, reports: Mapping[str, Report]) -> None:
        if self._as_json:
            render_broker.json_line({"brokers": reports})
        else:
            for name, report in reports.items():
                render_broker.ended(report["stats"], name)
