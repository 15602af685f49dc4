"""Tokens and TLS of a run: what its files mean to brokers and publishers.

`embar_shm.tls` is imported where it is needed: most runs have no TLS, and each of their processes
would load OpenSSL when it starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from embar_shm.config.schema import RunConfig
from embar_shm.errors import ConfigurationError
from embar_shm.token import read_token

if TYPE_CHECKING:
    import ssl

__all__ = ["broker_tls", "check", "publisher_tls", "token"]

_TLS = ("tls_cert", "tls_key", "tls_ca")


def check(values: RunConfig) -> None:
    """Finds mistakes in tokens and TLS here, once, and not in each process."""
    if values.transport == "shm":
        return
    files = {name: getattr(values, name) for name in ("token_file", *_TLS)}
    token(files)
    given = [name for name in _TLS if files[name]]
    # Brokers of the run's own need the certificate; elsewhere, publishers show it when asked.
    needed = ("tls_ca",) if given == ["tls_ca"] and values.addresses else _TLS
    if given and (missing := [name for name in needed if name not in given]):
        raise ConfigurationError(
            f"{', '.join(given)} without {', '.join(missing)}: "
            + (
                "publishers use TLS with tls_ca, and may have a certificate, which needs its key"
                if values.addresses
                else "the brokers of this run use TLS with tls_cert and tls_key, its publishers "
                "with tls_ca"
            ),
            "give what is missing, or none of them for no TLS",
        )
    broker_tls(files)
    publisher_tls(files | {"tls_cert": None, "tls_key": None})


def token(files: Mapping[str, Any]) -> str | None:
    """The secret in `token_file`, if given. Raises `ConfigurationError`, as do the others."""
    return None if files["token_file"] is None else read_token(files["token_file"])


def broker_tls(files: Mapping[str, Any]) -> ssl.SSLContext | None:
    """With `tls_cert`, and its `tls_key`."""
    if files["tls_cert"] is None:
        return None
    from embar_shm import tls

    return tls.server_context(files["tls_cert"], files["tls_key"])


def publisher_tls(files: Mapping[str, Any]) -> ssl.SSLContext | None:
    """With `tls_ca`; `tls_cert` and `tls_key` are for brokers elsewhere that ask for them."""
    if files["tls_ca"] is None:
        return None
    from embar_shm import tls

    return tls.client_context(files["tls_ca"], files["tls_cert"], files["tls_key"])
