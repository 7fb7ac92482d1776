"""Names and certificates of the links: a resolver that can fail, certificates that can be wrong."""

from __future__ import annotations

import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

from certificates import new_key, server_context, write_certificate

HOST = "links.test"
"""As whom the links are known to the processes that use them (fault_names.c)."""

FAILING = "FAULT_TEST_NAMES_FAIL"
"""Variable with the path of a file; while it is there, HOST does not resolve."""


def build_resolver(folder: Path) -> Path:
    """The library for LD_PRELOAD."""
    library = folder / "fault_names.so"
    source = Path(__file__).with_suffix(".c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True)
    return library


@dataclass(frozen=True)
class Certificates:
    """One that is valid and one that was, both signed by themselves.  ``trusted``: what clients are told to trust."""

    trusted: Path
    good: Path
    expired: Path

    @classmethod
    def made(cls, folder: Path) -> Certificates:
        key = new_key()
        found = cls(folder / "trusted.pem", folder / "good.pem", folder / "expired.pem")
        write_certificate(found.good, HOST, key, days=1)
        write_certificate(found.expired, HOST, key, days=-1)
        found.trusted.write_bytes(found.good.read_bytes() + found.expired.read_bytes())
        return found

    def contexts(self) -> tuple[ssl.SSLContext, ssl.SSLContext]:
        """To serve with, good and expired."""
        return server_context(self.good), server_context(self.expired)
