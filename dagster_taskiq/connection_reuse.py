"""Database connections that are used again instead of closed, in a process that makes many short ones.

Dagster's PostgreSQL storage opens a connection for every event that it stores, which costs more than storing it (most
of it is password hashing, on both sides).  While :class:`ConnectionReuse` is installed, the connections that SQLAlchemy
makes through psycopg2 are put aside when they are closed, and given out again when SQLAlchemy next wants one with the
same arguments.  Other drivers, psycopg2 used without SQLAlchemy, and connections of a class that the caller chose are
left alone.

What a new connection would be, a used one is too: whatever was under way is rolled back, ``DISCARD ALL`` ends all that
a session holds (settings, locks, LISTEN, temporary tables, prepared statements) when it is closed, and the adapters
that were registered on it go.  One that a server or a proxy has hung up on meanwhile, or that has lain for long enough
that a firewall may have forgotten it, is not given out.  A forked child has none of its parent's.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable, Hashable
from functools import cache
from typing import Any, Final

IDLE_MAX: Final = 20.0
"""Seconds that a connection may lie unused; shorter than what firewalls and proxies allow."""

KEPT_MAX: Final = 4
"""Connections that lie unused, of all arguments together."""


class ConnectionReuse:
    """Switched on by :meth:`install` and off by :meth:`close`.  ``warn``: called once when it cannot work."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._lock = threading.Lock()
        self._kept: list[_Kept] = []
        self._installed: tuple[Any, ...] | None = None
        self._pid = os.getpid()

    def install(self) -> None:
        """From now on; for engines that exist already, too."""
        try:
            from sqlalchemy import event
            from sqlalchemy.engine import Engine

            event.listen(Engine, "do_connect", self._connect)
        except Exception as error:
            self._give_up(error)
            return
        self._installed = (Engine, "do_connect", self._connect)

    def close(self) -> None:
        """No more, and close those that are put aside."""
        installed, self._installed = self._installed, None
        if installed is None:
            return
        from sqlalchemy import event

        event.remove(*installed)
        with self._lock:
            kept, self._kept = self._kept, []
        for one in kept:
            one.connection.really_close()

    def _give_up(self, error: Exception) -> None:
        self._installed = None
        self._warn(f"database connections are not reused, each is a new one ({type(error).__name__}: {error})")

    # ---- SQLAlchemy's side ------------------------------------------------------------------------------------------

    def _connect(self, dialect: Any, _record: Any, arguments: Any, options: dict[str, Any]) -> Any:
        """A connection for SQLAlchemy; None: it makes one itself."""
        if self._installed is None or dialect.driver != "psycopg2" or self._pid != os.getpid():
            return None
        if "connection_factory" in options or "cursor_factory" in options or options.get("async_"):
            return None
        try:
            key = (tuple(arguments), tuple(sorted(options.items())), _libpq_environment())
            hash(key)
            factory = _connection_class()
        except TypeError:
            return None  # an argument that is no plain value
        except Exception as error:
            self._give_up(error)
            return None
        found = self._take(key)
        if found is not None:
            return found
        made = dialect.connect(*arguments, **options, connection_factory=factory)
        made.put_aside = self._put_aside
        made.reuse_key = key
        made.fresh_types = (dict(made.string_types), dict(made.binary_types), made.encoding)
        return made

    def _take(self, key: Hashable) -> Any:
        while True:
            with self._lock:
                one = next((one for one in self._kept if one.connection.reuse_key == key), None)
                if one is None:
                    return None
                self._kept.remove(one)
            if time.monotonic() - one.since <= IDLE_MAX and not _has_word(one.connection):
                return one.connection
            one.connection.really_close()

    def _put_aside(self, connection: Any) -> bool:
        """Whether a connection that is being closed was kept instead."""
        if self._installed is None or self._pid != os.getpid() or not _reset(connection):
            return False
        with self._lock:
            if self._installed is None or len(self._kept) >= KEPT_MAX:
                return False
            self._kept.insert(0, _Kept(connection, time.monotonic()))
        return True


class _Kept:
    __slots__ = ("connection", "since")

    def __init__(self, connection: Any, since: float) -> None:
        self.connection = connection
        self.since = since


def _libpq_environment() -> tuple[tuple[str, str], ...]:
    """What libpq reads beside its arguments."""
    return tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("PG")))


def _has_word(connection: Any) -> bool:
    """Whether the server has sent something to a connection of which nothing was asked: its end."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _reset(connection: Any) -> bool:
    """Make it what it was when it was new.  False: that is not possible."""
    from psycopg2 import extensions

    string_types, binary_types, encoding = connection.fresh_types
    try:
        status = connection.info.transaction_status
        if connection.closed or status in (
            extensions.TRANSACTION_STATUS_ACTIVE,
            extensions.TRANSACTION_STATUS_UNKNOWN,
        ):
            return False
        if status != extensions.TRANSACTION_STATUS_IDLE:
            connection.rollback()
        if connection.encoding != encoding:
            return False
        # Without autocommit these three are a matter of psycopg2's alone; with it, each would be a statement.
        connection.set_session(isolation_level="DEFAULT", readonly="DEFAULT", deferrable="DEFAULT", autocommit=False)
        connection.autocommit = True
        cursor = extensions.cursor(connection)
        cursor.execute("DISCARD ALL")
        cursor.close()
        connection.autocommit = False
    except Exception:
        return False
    for registered, fresh in ((connection.string_types, string_types), (connection.binary_types, binary_types)):
        registered.clear()
        registered.update(fresh)
    connection.cursor_factory = None
    connection.notices.clear()
    connection.notifies.clear()
    return True


@cache
def _connection_class() -> Any:
    from psycopg2 import extensions

    class ReusedConnection(extensions.connection):  # type: ignore[misc]
        """``close`` puts it aside where that is possible."""

        def close(self) -> None:
            if not self.put_aside(self):
                self.really_close()

        def really_close(self) -> None:
            super().close()

    return ReusedConnection
