"""The shared secret of a broker and its publishers, from a file.

Never from the command line or the environment, which others can see, and never shown.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from embar_shm.errors import ConfigurationError

__all__ = ["read_token"]

_LEAST, _MOST = 8, 4096  # characters; HMAC does not make a guessable token a secret


def read_token(path: str | Path) -> str:
    """The text of the file, without white space around it. Raises `ConfigurationError`."""
    file = Path(path)
    try:
        with file.open("rb") as opened:
            mode = os.fstat(opened.fileno()).st_mode
            content = opened.read(_MOST + 1)
    except OSError as error:
        raise ConfigurationError(
            f"the token file {file} cannot be read: {error.strerror or error}"
        ) from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigurationError(
            f"others may use the token file {file} (mode {stat.S_IMODE(mode):04o})",
            f"chmod 600 {file}",
        )
    try:
        token = content.decode().strip()
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"the token file {file} is not UTF-8 text") from error
    if not _LEAST <= len(token) <= _MOST:
        raise ConfigurationError(
            f"the token file {file} has {len(token)} characters of a token, "
            f"{_LEAST} to {_MOST} are allowed",
            f"head -c 32 /dev/urandom | base64 > {file}",
        )
    return token
