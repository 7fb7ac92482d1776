"""Schema of the idempotency store: numbered SQL files, applied in order, each in a transaction of its own.

:func:`migrate` is safe to call from every process at its start: an advisory lock lets one at a time in, and an applied
migration is never applied again.  The functions block; from asyncio call them by ``asyncio.to_thread``.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

from dagster_taskiq.errors import StoreError, StoreSchemaError
from dagster_taskiq.store import IdempotencyStore

_LOCK = 0x6474715F6D6967  # "dtq_mig": ours among the advisory locks of the database


@dataclass(frozen=True, slots=True)
class Migration:
    number: int
    name: str
    sql: str


def available() -> list[Migration]:
    """The migrations of this release, in order."""
    found = []
    for entry in (resources.files("dagster_taskiq") / "sql" / "migrations").iterdir():
        if entry.name.endswith(".sql"):
            number, name = entry.name.removesuffix(".sql").split("_", 1)
            found.append(Migration(int(number), name, entry.read_text(encoding="utf-8")))
    return sorted(found, key=lambda migration: migration.number)


def applied(store: IdempotencyStore, *, timeout: float | None = None) -> int:
    """Number of the newest applied migration; 0 when the tables are missing."""
    try:
        rows: list[tuple[int, str]] = store.core.run("migrations", (), timeout=timeout).result()
    except StoreSchemaError:
        return 0
    return rows[-1][0] if rows else 0


def migrate(store: IdempotencyStore, *, timeout: float | None = None) -> int:
    """Bring the schema up to this release.  ``timeout``: seconds for each statement.  Returns the newest number.

    Raises ``StoreSchemaError`` when the database is newer than this release, ``StoreError`` when a migration fails
    (nothing of that one is left behind then)."""
    migrations = available()
    newest = migrations[-1].number
    done = applied(store, timeout=timeout)
    while done < newest:
        migration = next(m for m in migrations if m.number == done + 1)
        try:
            store.core.script(_script(migration), timeout=timeout).result()
            done = migration.number
        except StoreError:
            # Another process may have applied it while this one waited for the lock, or the reply was lost.
            now = applied(store, timeout=timeout)
            if now <= done:
                raise
            done = now
    _refuse_newer(done, newest)
    return done


def check(store: IdempotencyStore, *, timeout: float | None = None) -> None:
    """Raise ``StoreSchemaError`` unless the schema is exactly this release's."""
    newest = available()[-1].number
    done = applied(store, timeout=timeout)
    _refuse_newer(done, newest)
    if done < newest:
        state = f"at migration {done}, this release needs {newest}" if done else "missing in this database"
        raise StoreSchemaError(
            f"the dagster_taskiq tables are {state}: `dagster-taskiq db migrate` makes them, as does the start of a "
            "worker or of a run"
        )


def _refuse_newer(done: int, newest: int) -> None:
    if done > newest:
        raise StoreSchemaError(
            f"the dagster_taskiq tables are at migration {done}, newer than this release's {newest}: "
            "upgrade dagster-taskiq in this process"
        )


def _script(migration: Migration) -> str:
    # The row is checked first, under the lock: whoever comes second fails there, before it has changed anything.
    guard = (
        f"SELECT pg_advisory_xact_lock({_LOCK});\n"
        "DO $guard$ BEGIN\n"
        "  IF to_regclass('dagster_taskiq_migrations') IS NOT NULL THEN\n"
        f"    IF EXISTS (SELECT FROM dagster_taskiq_migrations WHERE number = {migration.number}) THEN\n"
        f"      RAISE EXCEPTION 'migration {migration.number} is applied already';\n"
        "    END IF;\n"
        "  END IF;\n"
        "END $guard$;\n"
    )
    record = f"INSERT INTO dagster_taskiq_migrations (number, name) VALUES ({migration.number}, '{migration.name}');\n"
    return f"{guard}{migration.sql}\n{record}"
