"""PostgreSQL with TLS, as managed ones want it.  The embedded one has none: this is an installed PostgreSQL."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import psycopg2

from dagster_taskiq.dev.postgres import EmbeddedPostgres, system_installation

SECONDS = 10.0


def encrypted_postgres(folder: Path) -> EmbeddedPostgres:
    """To be started; :func:`encrypt` comes after that."""
    binaries = system_installation()
    if binaries is None:
        raise SystemExit("--tls needs an installed PostgreSQL, as of Debian's package postgresql")
    return EmbeddedPostgres(folder, binaries=binaries)


def encrypt(postgres: EmbeddedPostgres) -> None:
    """From now on clients that want TLS have it; libpq's do unless told otherwise."""
    key, certificate = postgres.data / "server.key", postgres.data / "server.crt"
    command = ["openssl", "req", "-new", "-x509", "-nodes", "-days", "2", "-newkey", "rsa:2048"]
    command += ["-subj", "/CN=localhost"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    owner = postgres.data.stat()
    for path in (key, certificate):
        path.chmod(0o600)
        shutil.chown(path, owner.st_uid, owner.st_gid)
    connection = psycopg2.connect(postgres.url("postgres"))
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute("ALTER SYSTEM SET ssl = on")
        cursor.execute("SELECT pg_reload_conf()")
    connection.close()
    deadline = time.monotonic() + SECONDS
    while not psycopg2.connect(postgres.url("postgres")).info.ssl_in_use:
        if time.monotonic() > deadline:
            raise SystemExit("PostgreSQL does not take up TLS")
        time.sleep(0.05)
