"""Database connections that are used again instead of closed, in a process that makes many short ones.

Dagster's PostgreSQL storage opens a connection for every event that it stores, which costs more than storing it (most
of it is password hashing, on both sides).  While :class:`ConnectionReuse` is installed, the connections that SQLAlchemy
makes through psycopg2 are put aside when they are closed, and given out again when SQLAlchemy next wants one with the
same arguments.  Other drivers, psycopg2 used without SQLAlchemy, and connections of a class that the caller chose are
left alone.

What a new connection would be, a used one is too: whatever was under way is rolled back, ``DISCARD ALL`` ends all that
a session holds (settings, locks, LISTEN, temporary tables, prepared statements) when it is closed, and the adapters
that were registered on it go.  Where only statements were executed that are known to leave nothing behind, there is
nothing to discard.  One that a server or a proxy has hung up on meanwhile, or that has lain for long enough that a
firewall may have forgotten it, is not given out.  A forked child has none of its parent's.
"""

from __future__ import annotations

import os
import re
import select
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from functools import cache
from typing import Any, Final

IDLE_MAX: Final = 20.0
"""Seconds that a connection may lie unused; shorter than what firewalls and proxies allow."""

KEPT_MAX: Final = 4
"""Connections that lie unused, of all arguments together."""

SET_NAME: Final = "SELECT set_config('application_name', %s, false)"
"""For the session, not the transaction."""


_HARMLESS: Final = re.compile(r"\s*(SELECT|INSERT|UPDATE|DELETE|NOTIFY)\b", re.IGNORECASE)
_HARMFUL: Final = re.compile(r"set_config|lock", re.IGNORECASE)


def leaves_nothing(statement: str) -> bool:
    """Whether a statement of Dagster's storage leaves the session as it was."""
    return bool(_HARMLESS.match(statement)) and not _HARMFUL.search(statement)


class ConnectionReuse:
    """Switched on by :meth:`install` and off by :meth:`close`.  ``warn``: called once when it cannot work.
    ``harmless``: texts of statements after which a session is what it was before."""

    def __init__(self, warn: Callable[[str], None], harmless: frozenset[str] = frozenset()) -> None:
        self._warn = warn
        self._harmless = harmless
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

    def adopt(self, connection: Any, arguments: Iterable[Any], options: Mapping[str, Any]) -> None:
        """Give out ``connection``, of :func:`connection_class`, to the next who asks for one with these arguments.
        Raises ``TypeError`` when they cannot be compared."""
        connection.own(self._put_aside, _key(arguments, options), self._harmless)
        self._kept.append(_Kept(connection, time.monotonic()))

    def close(self) -> None:
        """No more, and close those that are put aside."""
        for connection in self.release():
            connection.really_close()

    def release(self) -> list[Any]:
        """No more.  Those that are put aside are the caller's."""
        installed, self._installed = self._installed, None
        if installed is None:
            return []
        from sqlalchemy import event

        event.remove(*installed)
        with self._lock:
            kept, self._kept = self._kept, []
        return [one.connection for one in kept]

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
            key = _key(arguments, options)
            factory = connection_class()
        except TypeError:
            return None  # an argument that is no plain value
        except Exception as error:
            self._give_up(error)
            return None
        found = self._take(key)
        if found is not None:
            return found
        made = dialect.connect(*arguments, **options, connection_factory=factory)
        made.own(self._put_aside, key, self._harmless)
        return made

    def _take(self, key: Hashable) -> Any:
        while True:
            with self._lock:
                one = next((one for one in self._kept if one.connection.reuse_key == key), None)
                if one is None:
                    return None
                self._kept.remove(one)
            if time.monotonic() - one.since <= IDLE_MAX and not has_word(one.connection):
                return one.connection
            one.connection.really_close()

    def _put_aside(self, connection: Any) -> bool:
        """Whether a connection that is being closed was kept instead."""
        if self._installed is None or self._pid != os.getpid() or not reset(connection):
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


def _key(arguments: Iterable[Any], options: Mapping[str, Any]) -> Hashable:
    """Of connections that are alike.  Raises ``TypeError`` for an argument that is no plain value."""
    key = (tuple(arguments), tuple(sorted(options.items())), libpq_environment())
    hash(key)
    return key


def libpq_environment() -> tuple[tuple[str, str], ...]:
    """What libpq reads beside its arguments."""
    return tuple(sorted((name, os.environ[name]) for name in os.environ if name.startswith("PG")))


def has_word(connection: Any) -> bool:
    """Whether the server has sent something to a connection of which nothing was asked: its end."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def reset(connection: Any) -> bool:
    """Make it what it was when it was new, but for its name.  False: that is not possible."""
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
        if (connection.isolation_level, connection.readonly, connection.deferrable) != (None, None, None):
            # With autocommit these were set by statements.
            connection.touched = True
        # Without it they are a matter of psycopg2's alone; with it, each would be a statement.
        connection.set_session(isolation_level="DEFAULT", readonly="DEFAULT", deferrable="DEFAULT", autocommit=False)
        if connection.touched:
            connection.touched = False
            connection.autocommit = True
            with extensions.cursor(connection) as cursor:
                cursor.execute("DISCARD ALL")
                if connection.name:
                    cursor.execute(SET_NAME, (connection.name,))
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
def connection_class() -> Any:
    """Of psycopg2 connections that can be used again."""
    from psycopg2 import extensions

    class Noting(extensions.cursor):  # type: ignore[misc]
        """Notes what may leave something behind in the session."""

        def execute(self, query: Any, variables: Any = None) -> Any:
            if not (isinstance(query, str) and query in self.connection.harmless):
                self.connection.touched = True
            return super().execute(query, variables)

    def touching(name: str) -> Callable[..., Any]:
        method = getattr(extensions.cursor, name)

        def call(self: Any, *arguments: Any, **options: Any) -> Any:
            self.connection.touched = True
            return method(self, *arguments, **options)

        return call

    for name in ("executemany", "callproc", "copy_expert", "copy_from", "copy_to"):
        setattr(Noting, name, touching(name))

    class ReusedConnection(extensions.connection):  # type: ignore[misc]
        """``close`` puts it aside where that is possible.

        ``touched``: something was executed that may be felt by the next user.  ``name``: its application_name, where
        that is not what a new connection would have."""

        touched = False
        name: str | None = None
        harmless: frozenset[str] = frozenset()

        def own(self, put_aside: Callable[[Any], bool], key: Hashable, harmless: frozenset[str]) -> None:
            """It belongs to a ConnectionReuse."""
            self.put_aside, self.reuse_key, self.harmless = put_aside, key, harmless
            self.fresh_types = (dict(self.string_types), dict(self.binary_types), self.encoding)

        def cursor(self, *arguments: Any, **options: Any) -> Any:
            if arguments or options or self.cursor_factory is not None:
                self.touched = True
                return super().cursor(*arguments, **options)
            return super().cursor(cursor_factory=Noting)

        def close(self) -> None:
            if not self.put_aside(self):
                self.really_close()

        def really_close(self) -> None:
            super().close()

    return ReusedConnection
