"""The one door to Postgres: connections, their errors, and a bound on every wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import cached_property
from math import inf
from time import monotonic
from typing import TYPE_CHECKING

import psycopg
from psycopg import AsyncConnection, pq
from psycopg.rows import TupleRow

from ..errors import AssistantError, ConfigurationError, DatabaseUnreachableError
from .bounded_connection import BoundedConnection
from .connection_string import parse_dsn
from .refusals import is_full_of_hints, raise_refused_connection, translate

if TYPE_CHECKING:
    from .kv import KeyValues

Connection = AsyncConnection[TupleRow]

CONNECT_SECONDS = 10
_END_SECONDS = 2.0
PATIENCE_SECONDS = 15.0
"""How long one use of a connection may take before the database counts as unreachable."""

# SQLSTATEs of a server that shuts down, or is read-only since a failover: the other connections
# to it are of no more use.
_GONE = ("08", "57P", "25006")
# What a session is set up with, and why, in the order of the query:
# - The pid tells a pooler: it announces another backend than the one that answers.
# - A process that is suspended within a transaction must not keep others from taking over.
# - Whoever waits for a lock must see what was committed meanwhile.
# - psycopg reads dates of one style only.
# - A client that has gone must not go on waiting for a lock: while commits wait for standbys, the
#   server would run out of connections. On Windows a server cannot check that.
_SESSION = """
SELECT pg_backend_pid(),
    (SELECT pid || ' ' || extract(epoch FROM backend_start)
        FROM pg_stat_get_activity(pg_backend_pid())),
    set_config('idle_in_transaction_session_timeout', '10s', false),
    set_config('default_transaction_isolation', 'read committed', false),
    set_config('datestyle', 'ISO', false),
    CASE WHEN version() !~* 'windows|mingw|visual c' THEN
        set_config('client_connection_check_interval', '2s', false) END
"""
_END = """
SELECT pg_terminate_backend(pid) FROM pg_stat_get_activity(NULL)
WHERE pid || ' ' || extract(epoch FROM backend_start) = ANY (%(backends)s)
"""


class Database:
    """A few connections to one database, opened when needed and reused.

    Not psycopg's pool: that hides the reason of a failed connection behind a time-out, and starts
    workers, which a command with a single query would pay for.

    `losses`: how often a follower lost its connection. Each time there may have been a failover,
    in which what was committed last was lost.
    """

    def __init__(
        self,
        dsn: str,
        *,
        limit: int = 8,
        revive: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """A database that is connected to when it is used.

        Args:
            dsn: a libpq connection string.
            limit: connections open at once.
            revive: called when nobody answers, before the one further attempt.
        """
        self.dsn = dsn
        self.losses = 0
        self._revive = revive
        self._idle: list[BoundedConnection] = []
        self._unanswered: set[str] = set()
        self._closed = False
        self._limit = limit
        self._slots = asyncio.Semaphore(limit)

    @cached_property
    def kv(self) -> KeyValues:
        """The key-value store of this database."""
        from .kv import KeyValues

        return KeyValues(self)

    async def connect(self) -> BoundedConnection:
        """Open a connection of the caller's own, in autocommit.

        Raises:
            ConfigurationError: the DSN is malformed or names no database of the server.
            NotPermittedError: the server refuses the user or the password.
            DatabaseUnreachableError: nobody answers.
        """
        try:
            return await self._connect()
        except DatabaseUnreachableError:
            if self._revive is None:
                raise
        await self._revive()
        return await self._connect()

    async def _connect(self) -> BoundedConnection:
        parameters = parse_dsn(self.dsn)
        parameters.setdefault("connect_timeout", CONNECT_SECONDS)
        parameters.setdefault("application_name", "assistant")
        parameters.setdefault("tcp_user_timeout", 10_000)
        if "," in str(parameters.get("host", "")):
            parameters.setdefault("target_session_attrs", "read-write")
        try:
            # Always UTF-8, whatever PGCLIENTENCODING says: values must come out as they went in.
            connection = await BoundedConnection.connect(
                "", autocommit=True, **{**parameters, "client_encoding": "utf8"}
            )
            return await _set_up(connection)
        except psycopg.Error as error:
            raise_refused_connection(error)
        except TimeoutError:
            raise DatabaseUnreachableError(
                "cannot reach the database: it lets us in, but does not answer"
            ) from None
        except UnicodeError:
            host = parameters.get("host")
            raise ConfigurationError(f"{host!r} in the database URL is no name of a host") from None

    @asynccontextmanager
    async def connection(self, patience: float = PATIENCE_SECONDS) -> AsyncIterator[Connection]:
        """Lend a connection in autocommit; `patience` in seconds bounds the waiting for answers.

        Whatever this process has given up before is over by then; where that is not certain, its
        session is terminated first. An old write must not be carried out after a newer one.

        Raises:
            AssistantError: what the database said, as one of the program's own errors.
        """
        async with self._slots:
            connection = await self._take()
            try:
                connection.deadline = monotonic() + patience
                await self._end_unanswered(connection)
                yield connection
                _require_confirmed(connection)
            except psycopg.Error as error:
                if (error.sqlstate or "08").startswith(_GONE):
                    await self._drop(connection)
                elif is_full_of_hints(error):
                    await _make_room_for_hints(connection)
                raise translate(error) from error
            except TimeoutError as error:
                await self._drop(connection)
                raise DatabaseUnreachableError(
                    f"the database did not answer within {patience:g}s"
                ) from error
            finally:
                await self._give_back(connection)
                if connection.unanswered:
                    await self._end_given_up()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """Lend a connection inside one transaction; it commits when the block ends well."""
        async with self.connection() as connection, connection.transaction():
            yield connection

    @asynccontextmanager
    async def lasting_connection(self) -> AsyncIterator[Connection]:
        """Lend a connection for as long as need be, beside those that are limited.

        Whoever has changed the session, as by LISTEN, changes it back or closes it.
        """
        connection = await self._take()
        try:
            yield connection
        finally:
            await self._give_back(connection)

    async def close(self) -> None:
        """Close the idle connections; those lent out close when they come back."""
        self._closed = True
        await self._close_idle()

    async def _end_given_up(self) -> None:
        """Terminate, on a connection of its own, the session of a statement just given up.

        It must not be carried out after the caller was told that it failed. Where this fails, the
        next use of this database tries again.
        """
        with suppress(AssistantError, psycopg.Error, TimeoutError):
            async with asyncio.timeout(_END_SECONDS), await self._connect() as connection:
                await self._end_unanswered(connection)

    async def _end_unanswered(self, connection: Connection) -> None:
        """Terminate sessions that have not answered a request to cancel."""
        if self._unanswered:
            backends = list(self._unanswered)
            # A session in another role than that of its login (SET ROLE) may not terminate those.
            with suppress(psycopg.errors.InsufficientPrivilege):
                await connection.execute(_END, {"backends": backends})
            self._unanswered.difference_update(backends)

    async def _take(self) -> BoundedConnection:
        while self._idle:
            connection = self._idle.pop()
            if not _hung_up(connection):
                return connection
            await connection.close()
        return await self.connect()

    async def _drop(self, connection: BoundedConnection) -> None:
        """Close a connection that has failed, and the idle ones, which are likely no better."""
        await connection.close()
        await self._close_idle()

    async def _close_idle(self) -> None:
        while self._idle:
            await self._idle.pop().close()

    async def _give_back(self, connection: BoundedConnection) -> None:
        connection.deadline = inf
        if connection.unanswered:
            self._unanswered.add(connection.backend)
        idle = connection.pgconn.transaction_status == pq.TransactionStatus.IDLE
        room = not self._closed and len(self._idle) < self._limit
        if idle and room and not connection.unconfirmed:
            self._idle.append(connection)
        else:
            await connection.close()


async def _set_up(connection: BoundedConnection) -> BoundedConnection:
    """Set up the session of a connection that is new."""
    connection.add_notice_handler(connection.notice)
    connection.deadline = monotonic() + CONNECT_SECONDS
    try:
        row = await (await connection.execute(_SESSION)).fetchone()
    except psycopg.Error:
        await connection.close()
        raise
    connection.deadline = inf
    assert row is not None
    if row[0] == connection.info.backend_pid:
        connection.backend = row[1] or ""
    else:
        connection.pooled = True
        connection.prepare_threshold = None
    return connection


async def _make_room_for_hints(connection: Connection) -> None:
    """Have the server drop notifications that all have read: when full, only this query does so."""
    with suppress(psycopg.Error, TimeoutError):
        await connection.execute("SELECT pg_notification_queue_usage()")


def is_pooled(connection: Connection) -> bool:
    """Whether a pooler stands between this connection and the server."""
    return isinstance(connection, BoundedConnection) and connection.pooled


def _require_confirmed(connection: BoundedConnection) -> None:
    """Refuse to call done what a failover may undo: the wait for the standbys was broken off."""
    if connection.unconfirmed:
        raise DatabaseUnreachableError(
            "the standbys have not confirmed it; it is kept here, but a failover may lose it"
        )


def _hung_up(connection: BoundedConnection) -> bool:
    """Whether the server said goodbye while nobody looked: an idle socket has nothing to read."""
    import select

    if connection.closed:
        return True
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))
