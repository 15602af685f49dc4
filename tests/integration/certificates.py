"""Files with the certificates of a site: made for a test, valid for what it says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import trustme

__all__ = ["Certificate", "Site"]


@dataclass(frozen=True)
class Certificate:
    """PEM files, as the command line takes them."""

    certificate: str
    key: str


class Site:
    """A certificate authority."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._authority = trustme.CA()
        self.ca = str(folder / "ca.pem")
        self._authority.cert_pem.write_to_path(self.ca)

    def issue(self, name: str) -> Certificate:
        """A certificate for one host name or address."""
        issued = self._authority.issue_cert(name)
        found = Certificate(*(str(self._folder / f"{name}.{kind}") for kind in ("pem", "key")))
        issued.cert_chain_pems[0].write_to_path(found.certificate)
        issued.private_key_pem.write_to_path(found.key)
        return found
