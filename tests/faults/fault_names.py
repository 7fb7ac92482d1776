"""Names and certificates of the links: a resolver that can fail, certificates that can be wrong."""

from __future__ import annotations

import datetime
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

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
        key = ec.generate_private_key(ec.SECP256R1())
        found = cls(folder / "trusted.pem", folder / "good.pem", folder / "expired.pem")
        _write(found.good, key, days=1)
        _write(found.expired, key, days=-1)
        found.trusted.write_bytes(found.good.read_bytes() + found.expired.read_bytes())
        return found

    def contexts(self) -> tuple[ssl.SSLContext, ssl.SSLContext]:
        """To serve with, good and expired."""
        return _server(self.good), _server(self.expired)


def _write(path: Path, key: ec.EllipticCurvePrivateKey, *, days: int) -> None:
    """A certificate that signs itself, with its key; it is valid until ``days`` from now."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, HOST)])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=10))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(HOST)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + secret)


def _server(pem: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context
