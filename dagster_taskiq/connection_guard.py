"""A superseded run worker opens no connection to Dagster's storage any more.

Whoever takes a run over ends the connections that the run worker before has to Dagster's event log.  That one may live
and open new ones.  While a :class:`ConnectionGuard` is installed, every connection that SQLAlchemy makes in this
process asks, before its first use, whether the process may still write.

Asked after the connection is open: either the takeover came first, and the answer is no; or it comes later, finds the
connection by its ``application_name`` and ends it.  A connection that was put aside and is used again
(``connection_reuse``) does not ask again: it would have been ended meanwhile.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any


class ConnectionGuard:
    """Switched on by :meth:`install` and off by :meth:`close`.  ``ask``: called from any thread with a new connection
    open; does not return, or raises, when that may not be used."""

    def __init__(self, ask: Callable[[], None]) -> None:
        self._ask = ask
        self._asked: weakref.WeakSet[Any] = weakref.WeakSet()

    def install(self) -> None:
        """From now on; for engines that exist already, too."""
        from sqlalchemy import event
        from sqlalchemy.engine import Engine

        event.listen(Engine, "connect", self._connected)

    def close(self) -> None:
        from sqlalchemy import event
        from sqlalchemy.engine import Engine

        event.remove(Engine, "connect", self._connected)

    def _connected(self, connection: Any, _record: Any) -> None:
        if connection in self._asked:
            return
        self._ask()
        with suppress(TypeError):  # SQLite's cannot be remembered; they are never used again
            self._asked.add(connection)


@contextmanager
def marked_connections(name: str) -> Iterator[None]:
    """Mark the connections that this process opens to PostgreSQL, so that a coordinator that takes over can end
    them."""
    before = os.environ.get("PGAPPNAME")
    os.environ["PGAPPNAME"] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ["PGAPPNAME"]
        else:
            os.environ["PGAPPNAME"] = before
