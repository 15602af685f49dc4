"""TLS for `net.Stream`, and contexts with sensible settings.

One thread reads a stream while another writes, and an OpenSSL connection may only be used by one at
a time. So the TLS state lives in memory (`ssl.MemoryBIO`) behind a lock that is never held while
waiting for the network.
"""

from __future__ import annotations

import errno
import socket
import ssl
import threading
from pathlib import Path

from embar_shm.errors import (
    AccessDenied,
    ConfigurationError,
    ConnectionLost,
    EmbarError,
    ProtocolError,
    WaitTimeout,
)
from embar_shm.net import Stream

__all__ = ["TlsStream", "check_context", "client_context", "server_context"]

_CIPHERTEXT = 64 * 1024  # bytes taken from the socket at a time
_PLAINTEXT = 256 * 1024  # bytes encrypted at a time


def server_context(
    certificate: str | Path, key: str | Path, client_ca: str | Path | None = None
) -> ssl.SSLContext:
    """For a broker. With `client_ca`, publishers have to show a certificate it has signed.

    Files in PEM format. Raises `ConfigurationError` for what cannot be read.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    _load(context, certificate, key, client_ca)
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(
    ca: str | Path | None = None,
    certificate: str | Path | None = None,
    key: str | Path | None = None,
) -> ssl.SSLContext:
    """For a publisher: the broker's certificate must be signed by `ca` (None: the system's).

    `certificate` and `key`: what the broker may ask for. Raises `ConfigurationError`.
    """
    context = ssl.create_default_context() if ca is None else ssl.SSLContext(
        ssl.PROTOCOL_TLS_CLIENT
    )  # fmt: skip
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    _load(context, certificate, key, ca)
    return context


def check_context(context: ssl.SSLContext, server_name: str | None) -> None:
    """Raises `ConfigurationError` for a context of the wrong side.

    `server_name`: whom a publisher connects to; None: this is the broker.
    """
    try:
        _wrap(context, ssl.MemoryBIO(), ssl.MemoryBIO(), server_name)
    except (ssl.SSLError, ValueError) as error:
        made = "server_context" if server_name is None else "client_context"
        raise ConfigurationError(
            f"this TLS context cannot be used here: {error}",
            f"make it with embar_shm.tls.{made}()",
        ) from error


def _wrap(
    context: ssl.SSLContext,
    incoming: ssl.MemoryBIO,
    outgoing: ssl.MemoryBIO,
    server_name: str | None,
) -> ssl.SSLObject:
    return context.wrap_bio(
        incoming, outgoing, server_side=server_name is None, server_hostname=server_name
    )


def _load(
    context: ssl.SSLContext,
    certificate: str | Path | None,
    key: str | Path | None,
    ca: str | Path | None,
) -> None:
    if (certificate is None) != (key is None):
        raise ConfigurationError("a certificate needs its key, and a key its certificate")
    if certificate is not None:
        try:
            context.load_cert_chain(certificate, key, password=_no_password)
        except OSError as error:  # ssl.SSLError is one
            raise ConfigurationError(
                f"cannot use the certificate {certificate} with the key {key}: {error}",
                "both are PEM files, and belong together",
            ) from error
    if ca is not None:
        try:
            context.load_verify_locations(ca)
        except OSError as error:
            raise ConfigurationError(
                f"cannot use the certificates of {ca}: {error}", "it is a PEM file"
            ) from error


def _no_password() -> str:
    raise ConfigurationError(  # else OpenSSL would ask on the terminal
        "the key is encrypted", "use a key file without a passphrase, readable by its owner only"
    )


class TlsStream(Stream):
    """A connected TCP socket whose bytes are encrypted. Do `handshake` first."""

    def __init__(
        self, sock: socket.socket, peer: str, context: ssl.SSLContext, server_name: str | None
    ) -> None:
        """`server_name`: what the broker's certificate must have; None: this is the broker."""
        super().__init__(sock, peer)
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = _wrap(context, self._incoming, self._outgoing, server_name)
        self._using = threading.Lock()  # around all three
        self._established = False

    @property
    def plain_fd(self) -> int | None:
        return None

    def handshake(self) -> None:
        """Raises `AccessDenied` for a certificate that does not satisfy, `ProtocolError` when the
        other side does not speak TLS, `ConnectionLost`, and `WaitTimeout` at the deadline.
        """
        self._until = self._deadline
        try:
            while not self._shake_hands():
                self._wait_for_more()
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EWOULDBLOCK):
                raise ConnectionLost(
                    f"the connection with {self.peer} was lost in the TLS handshake: {error}"
                ) from error
            raise WaitTimeout(
                f"{self.peer} stands still in the TLS handshake",
                "does it use TLS, and is it alive?",
            ) from error

    def _shake_hands(self) -> bool:
        """Goes on with what has come; True when nothing more is needed."""
        try:
            with self._using:
                self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return False
        except ssl.SSLError as error:
            self._flush_alert()
            raise self._denied(error) from error
        self._flush()
        self._established = True
        return True

    def _wait_for_more(self) -> None:
        self._hurry()
        data = self._socket.recv(_CIPHERTEXT)
        if not data:
            raise ConnectionLost(f"{self.peer} closed the connection in the TLS handshake")
        with self._using:
            self._incoming.write(data)

    def _receive(self, view: memoryview) -> int:
        while True:
            try:
                with self._using:
                    return int(self._tls.read(len(view), view))
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLZeroReturnError:
                return 0
            except ssl.SSLError as error:
                raise self._denied(error) from error
            self._hurry()
            data = self._socket.recv(_CIPHERTEXT)
            if not data:
                return 0  # the protocol has its own goodbye: a cut is noticed there
            with self._using:
                self._incoming.write(data)

    def _send(self, parts: list[memoryview]) -> int:
        if not self._established:  # the other side does not use TLS, and is told so
            return super()._send(parts)
        try:
            with self._using:
                taken = self._tls.write(parts[0][:_PLAINTEXT])
        except ssl.SSLError as error:
            raise self._denied(error) from error
        self._flush()
        return taken

    def _flush(self) -> None:
        with self._using:
            data = self._outgoing.read()
        if data:
            self._socket.sendall(data)

    def _flush_alert(self) -> None:
        """Tells the other side why, if it listens."""
        try:
            self._flush()
        except OSError:
            return

    def _denied(self, error: ssl.SSLError) -> EmbarError:
        reason = (error.reason or str(error)).lower().replace("_", " ")
        if isinstance(error, ssl.SSLCertVerificationError):
            return AccessDenied(
                f"the certificate of {self.peer} is not trusted: {error.verify_message or reason}",
                "use the CA that signed it, a certificate that has not expired, and the host name "
                "or address that it was made for",
            )
        if "alert" in reason or "certificate" in reason:
            return AccessDenied(
                f"{self.peer} refused the TLS connection: {reason}",
                "publishers need the CA of the broker's certificate, and the broker may ask for "
                "a certificate of theirs",
            )
        if not self._established:
            return ProtocolError(
                f"{self.peer} does not speak TLS: {reason}", "both sides must use TLS, or neither"
            )
        return ConnectionLost(f"the TLS connection with {self.peer} is damaged: {reason}")
