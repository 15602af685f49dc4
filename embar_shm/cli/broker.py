"""``embar-shm broker``: one broker in the foreground, for publishers of this and other machines."""

from __future__ import annotations

import dataclasses
import json
import logging
import signal
import sys
from typing import Any

import click

import embar_shm as es
from embar_shm import tls
from embar_shm.cli import render_broker
from embar_shm.token import read_token
from embar_shm.transports import Listener

__all__ = ["broker_command"]


@click.command("broker")
@click.argument("name", metavar="CLUSTER/BROKER")
@click.option(
    "--listen",
    "urls",
    multiple=True,
    metavar="URL",
    help="Also take publishers over a network: tcp://127.0.0.1:7400 for this machine only, "
    "tcp://0.0.0.0:7400 for others, too; port 0: any free one. Repeat it for several.",
)
@click.option(
    "--slots",
    type=int,
    metavar="N",
    default=8,
    show_default=True,
    help="Batch slots in the ring.",
)
@click.option(
    "--slot-size",
    metavar="SIZE",
    default="2MiB",
    show_default=True,
    help="Bytes that a batch can have.",
)
@click.option(
    "--max-publishers",
    type=int,
    metavar="N",
    default=64,
    show_default=True,
    help="Publishers connected at a time.",
)
@click.option(
    "--wait",
    type=click.Choice(["adaptive", "spin", "block"]),
    default="adaptive",
    show_default=True,
    help="How it waits for batches: spin, block in the kernel, or spin first and then block.",
)
@click.option(
    "--socket-buffer",
    metavar="SIZE",
    help="Bytes that the kernel should hold for a connection, in each direction. "
    "[default: what suits the address]",
)
@click.option("--token-file", metavar="PATH", help="The secret that publishers must know.")
@click.option("--tls-cert", metavar="PATH", help="PEM certificate of this broker: turns TLS on.")
@click.option("--tls-key", metavar="PATH", help="PEM file with its key.")
@click.option(
    "--tls-client-ca", metavar="PATH", help="Publishers need a certificate signed by one of these."
)
@click.option(
    "--insecure", is_flag=True, help="Listen beyond this machine with neither token nor TLS."
)
@click.option("--replace-dead", is_flag=True, help="Replace the ring of a broker that was killed.")
@click.option("--json", "as_json", is_flag=True, help="Print two JSON objects, a line each.")
def broker_command(
    name: str,
    urls: tuple[str, ...],
    slots: int,
    slot_size: str,
    max_publishers: int,
    wait: Any,
    socket_buffer: str | None,
    token_file: str | None,
    tls_cert: str | None,
    tls_key: str | None,
    tls_client_ca: str | None,
    insecure: bool,
    replace_dead: bool,
    as_json: bool,
) -> None:
    """Run a broker until Ctrl-C or SIGTERM, then print what it did.

    Prints the addresses that publishers can use once it is ready. Publishers of this machine use
    shm://CLUSTER/BROKER; what comes in over --listen ends up in the same ring.
    """
    only_listening = {
        "--token-file": token_file,
        "--tls-cert": tls_cert,
        "--tls-key": tls_key,
        "--tls-client-ca": tls_client_ca,
        "--socket-buffer": socket_buffer,
        "--insecure": insecure or None,
    }
    given = [flag for flag, value in only_listening.items() if value is not None]
    if given and not urls:
        raise click.UsageError(
            f"{', '.join(given)}: nothing is protected or sized without --listen"
        )
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    token = None if token_file is None else read_token(token_file)
    context = None
    if tls_cert is not None or tls_key is not None or tls_client_ca is not None:
        if tls_cert is None or tls_key is None:
            raise click.UsageError("TLS needs both --tls-cert and --tls-key")
        context = tls.server_context(tls_cert, tls_key, tls_client_ca)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the library's: serve() returns, and we exit 0
    with es.Broker.create(
        name,
        slots=slots,
        slot_size=slot_size,
        max_publishers=max_publishers,
        wait=wait,
        replace_dead=replace_dead,
    ) as broker:
        listeners = [
            broker.listen(
                url, token=token, tls=context, insecure=insecure, socket_buffer=socket_buffer
            )
            for url in urls
        ]
        addresses = [broker.address, *(listener.address for listener in listeners)]
        try:  # from the moment on at which somebody may know that we are here
            if as_json:
                click.echo(json.dumps({"addresses": addresses}))
            else:
                render_broker.ready(addresses)
            sys.stdout.flush()
            broker.serve()
        finally:
            broker.close()
            _report(broker, listeners, as_json)


def _report(broker: es.Broker, listeners: list[Listener], as_json: bool) -> None:
    stats = dataclasses.asdict(broker.stats())
    sockets = [listener.sockets() for listener in listeners]
    if as_json:
        found = {
            "stats": stats,
            "sockets": [None if s is None else dataclasses.asdict(s) for s in sockets],
        }
        click.echo(json.dumps(found))
    else:
        render_broker.ended(stats)
