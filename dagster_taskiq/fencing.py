"""What op code can learn about the attempt it runs in.

The fencing token is the generation of the claim under which this step process runs: a number that PostgreSQL hands out
once and never again, larger for every later claim.  An op that writes to something of its own can send it along and
have the receiver refuse a smaller one than it has seen: then an attempt that was taken for dead cannot overwrite the
work of its successor.

:func:`refuse_stale` is such a receiver for what an op writes to PostgreSQL.
"""

from __future__ import annotations

import os
import re
from typing import Any, Final

from dagster_taskiq.errors import StaleWriteError

FENCES_TABLE: Final = "CREATE TABLE IF NOT EXISTS {table} (resource text PRIMARY KEY, token bigint NOT NULL)"
"""The table that :func:`refuse_stale` needs, in the database that the op writes to."""


TOKEN_VARIABLE = "DAGSTER_TASKIQ_FENCING_TOKEN"
RUN_VARIABLE = "DAGSTER_TASKIQ_RUN_ID"
STEP_VARIABLE = "DAGSTER_TASKIQ_STEP_KEY"
ATTEMPT_VARIABLE = "DAGSTER_TASKIQ_ATTEMPT"
WORKER_VARIABLE = "DAGSTER_TASKIQ_WORKER"


def fencing_token() -> int | None:
    """The generation of the claim that this process runs under; None outside a step process of a worker."""
    text = os.environ.get(TOKEN_VARIABLE)
    return int(text) if text else None


def step_attempt() -> int | None:
    """Dagster's number of this attempt, 1 for the first, losses counted (``context.retry_number`` leaves them out);
    None outside a step process.
    """
    text = os.environ.get(ATTEMPT_VARIABLE)
    return int(text) if text else None


def refuse_stale(cursor: Any, resource: str, *, token: int | None = None, table: str = "fences") -> None:
    """Call first in the transaction that writes ``resource``.  Raises ``StaleWriteError`` when a later claim has
    written it already; else no earlier one can any more once this transaction has committed.

    ``cursor``: of psycopg2 or psycopg, in a transaction; others that write the same resource wait for its end.
    ``resource``: what must not be overwritten, in a name of yours; with the run id in it, attempts of one run are told
    apart and different runs are not.  ``token``: default: this process's.  Without one (no step process of a worker)
    nothing is checked.  ``table``: made by :data:`FENCES_TABLE`.
    """
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)?", table):
        raise ValueError(f"not the name of a table: {table!r}")
    token = fencing_token() if token is None else token
    if token is None:
        return
    cursor.execute(
        f"INSERT INTO {table} AS f (resource, token) VALUES (%s, %s) ON CONFLICT (resource) DO UPDATE"
        " SET token = excluded.token WHERE f.token <= excluded.token RETURNING token",
        (resource, token),
    )
    if cursor.fetchone() is None:
        raise StaleWriteError(f"a later claim than {token} has written {resource!r}: this one's output is not wanted")
