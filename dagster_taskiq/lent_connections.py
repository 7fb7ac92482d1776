"""Connections to PostgreSQL that are handed on from step process to step process.

A step needs one connection to Dagster's storage.  Opening it costs the step a password's hashing and the server a new
process with cold caches: together more than the step's events do.  So the warm parent opens connections and lends one
to each step process that it forks, by way of the fork.  The step process gives it back when it ends: idle, with all
that a session can hold discarded, and says so in memory that both share.  Of a process that died otherwise the warm
parent closes the connection.

What makes that safe:

- A connection has one user at a time.  A forked process puts ``/dev/null`` in the place of all those that are not its
  own; one that was used by a process which has forked itself is not handed on.
- While a step has it, it bears the name of the step's claim (``application_name``), by which whoever declares the step
  lost ends it: set before the first use, and again whenever the session is reset.
- Only unencrypted ones: two processes cannot share the state of TLS.  With TLS a step process opens its own, while it
  waits for its attempt.
- The warm parent never waits for long: it asks for a connection with a time limit, and not again for a while when that
  failed.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from dagster_taskiq.connection_reuse import IDLE_MAX, SET_NAME, ConnectionReuse, connection_class, has_word, reset

CONNECT_SECONDS: Final = 2
"""For opening one (libpq's shortest)."""

PAUSE: Final = 30.0
"""Seconds without a try after one has failed."""

USES_MAX: Final = 200
"""Steps that one connection serves: a server process grows with what it has seen."""

BORROWERS_MAX: Final = 1024
"""Step processes with a lent connection at a time."""

NAME: Final = "dagster-taskiq-lent"
"""``application_name`` of those that nobody has."""


@dataclass(eq=False, slots=True)
class Loan:
    """A connection and who has it; ``place``: of its byte in the memory that says whether it was given back."""

    connection: Any
    place: int
    since: float = 0.0
    uses: int = 0


class Lender:
    """The warm parent's.  ``arguments``, ``options``: with which SQLAlchemy calls psycopg2; connections of other
    arguments are not lent.
    """

    def __init__(self, arguments: tuple[Any, ...], options: Mapping[str, Any]) -> None:
        self._arguments = arguments
        self._options = dict(options)
        self._given_back = mmap.mmap(-1, BORROWERS_MAX)
        self._places = list(range(BORROWERS_MAX))
        self._idle: list[Loan] = []
        self._out: dict[int, Loan] = {}
        self._not_before = 0.0
        self._encrypted = False
        self._shared = False
        """A child of this process may have its connection, too."""

    # ---- the warm parent --------------------------------------------------------------------------------------------

    def lend(self) -> Loan | None:
        """One for the process that is forked next.  None: it has to open its own."""
        loan = self._pick() or self._open()
        if loan is not None:
            loan.uses += 1
            self._given_back[loan.place] = 0
        return loan

    def forked(self, pid: int, loan: Loan) -> None:
        """``pid`` has it now."""
        self._out[pid] = loan

    def reaped(self, pid: int) -> None:
        """``pid`` is dead, and what it had is free again, or of no use."""
        loan = self._out.pop(pid, None)
        if loan is None:
            return
        if self._given_back[loan.place] and loan.uses < USES_MAX:
            loan.since = time.monotonic()
            self._idle.append(loan)
        else:
            self._drop(loan)

    def refused(self, loan: Loan) -> None:
        """Nobody was forked."""
        self._drop(loan)

    def close_idle(self) -> float | None:
        """Close those that have lain unused for long.  Returns after how many seconds there is more to close."""
        now = time.monotonic()
        while self._idle and self._idle[0].since + IDLE_MAX <= now:
            self._drop(self._idle.pop(0))
        return self._idle[0].since + IDLE_MAX - now if self._idle else None

    def _pick(self) -> Loan | None:
        self.close_idle()
        while self._idle:
            loan = self._idle.pop()
            if not has_word(loan.connection):
                return loan
            self._drop(loan)
        return None

    def _open(self) -> Loan | None:
        if not self._places or self._encrypted or time.monotonic() < self._not_before:
            return None
        connection = self._connect()
        if connection is None:
            self._not_before = time.monotonic() + PAUSE
            return None
        if connection.info.ssl_in_use:
            connection.really_close()
            self._encrypted = True
            return None
        return Loan(connection, self._places.pop())

    def _connect(self) -> Any:
        import psycopg2

        options = {"application_name": NAME, **self._options}
        # Not GSS's encryption either; and whoever waits for this has others to look after.
        options.update(gssencmode="disable", connect_timeout=CONNECT_SECONDS)
        try:
            connection = psycopg2.connect(*self._arguments, **options, connection_factory=connection_class())
        except Exception:
            return None
        connection.own(lambda _connection: False, None, frozenset())
        return connection

    def _drop(self, loan: Loan) -> None:
        self._places.append(loan.place)
        if not self._given_back[loan.place]:
            # Its user may have died in the middle of something: no word of ours may follow.
            _cut(loan.connection)
        with suppress(Exception):
            loan.connection.really_close()

    # ---- the step process -------------------------------------------------------------------------------------------

    def keep_only(self, mine: Loan | None) -> None:
        """In a process that was just forked: have none but this one."""
        for loan in (*self._idle, *self._out.values()):
            if loan is not mine:
                _cut(loan.connection)

    def ahead(self, loan: Loan | None) -> Any:
        """The connection with which this process waits for its attempt: the one that it was lent; one of its own, where
        none is lent because they are encrypted; None."""
        if loan is not None:
            return loan.connection
        return self._connect() if self._encrypted else None

    def begin(self, connection: Any, name: str, reuse: ConnectionReuse) -> None:
        """Name the connection after the claim, and have it used."""
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(SET_NAME, (name,))
        connection.autocommit = False
        connection.name, connection.touched = name, False
        reuse.adopt(connection, self._arguments, self._options)
        os.register_at_fork(after_in_parent=self._on_fork)

    def _on_fork(self) -> None:
        self._shared = True

    def give_back(self, loan: Loan) -> bool:
        """At the end, when nothing in this process uses it any more.  False: it has to be closed."""
        connection = loan.connection
        connection.name, connection.touched = None, True
        if self._shared or not reset(connection):
            return False
        self._given_back[loan.place] = 1
        return True


def _cut(connection: Any) -> None:
    """Have the descriptor lead nowhere.  It stays taken, so that no other file gets its number while the connection's
    owner still believes that it is open."""
    with suppress(Exception):
        nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.dup2(nowhere, connection.fileno(), inheritable=False)
        finally:
            os.close(nowhere)
