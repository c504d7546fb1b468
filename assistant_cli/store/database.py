"""The one door to Postgres: connections, their errors, and a bound on every wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import cached_property
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, TypeVar

import psycopg
from psycopg import AsyncConnection, generators, pq, waiting
from psycopg.abc import PQGen
from psycopg.errors import Diagnostic
from psycopg.rows import TupleRow

from ..errors import ConfigurationError, DatabaseUnreachableError
from .connection_string import parse_dsn
from .refusals import raise_refused_connection, translate

if TYPE_CHECKING:
    from psycopg.pq.abc import PGcancelConn

    from .kv import KeyValues

Connection = AsyncConnection[TupleRow]
RV = TypeVar("RV")

CONNECT_SECONDS = 10
_CANCEL_SECONDS = 1.0
PATIENCE_SECONDS = 15.0
"""How long one use of a connection may take before the database counts as unreachable."""

# The server ends, or is read-only since a failover: what else is open to it is no better.
_GONE = ("08", "57P", "25006")
# A process that is stopped in a transaction must not keep others from taking over. Who waits for a
# lock must see what was committed meanwhile. Who has given up must not go on waiting for one, or
# the server fills while its commits wait for standbys; only on Windows can it not look. A pooler
# between us and the server tells another backend than the one that answers.
_SESSION = """
SELECT pg_backend_pid(), set_config('idle_in_transaction_session_timeout', '10s', false),
    set_config('default_transaction_isolation', 'read committed', false),
    CASE WHEN version() !~* 'windows|mingw|visual c' THEN
        set_config('client_connection_check_interval', '2s', false) END
"""


class _Connection(AsyncConnection[TupleRow]):
    """A connection that is dropped when whoever waits for it gives up, or is cancelled.

    The server is asked to break off what it does, but not waited for: one that hangs would take
    longer than any deadline of ours. Nor need psycopg look around every tenth of a second, as it
    does for other ways to be interrupted.

    `pooled`: a pooler such as PgBouncer may serve each transaction by another backend: nothing
    is prepared, and notifications do not arrive.
    `unconfirmed`: a commit of it is on this server alone, where standbys should have it as well.
    `deadline`: the time, of time.monotonic, at which whoever waits for it gives up.
    `cancellations`: where what still asks the server to break off is kept.
    """

    pooled = False
    unconfirmed = False
    deadline = inf
    cancellations: set[asyncio.Task[None]]

    def notice(self, diagnostic: Diagnostic) -> None:
        """Take note of a warning, whose text is in the server's language."""
        self.unconfirmed |= diagnostic.source_function == "SyncRepWaitForLSN"

    async def wait(
        self,
        gen: PQGen[RV],
        interval: float = 60.0,
        timeout: float | None = None,  # noqa: ASYNC109 (psycopg's own)
    ) -> RV:
        # A time-out of asyncio around each use would cost as much as all else here.
        remaining = self.deadline - monotonic()
        timeout = remaining if timeout is None else min(timeout, remaining)
        try:
            return await waiting.wait_async(
                gen, self.pgconn.socket, interval=interval, timeout=timeout
            )
        except (asyncio.CancelledError, KeyboardInterrupt):
            self._give_up()
            raise
        except psycopg.OperationalError as error:
            if error.sqlstate or monotonic() < self.deadline:
                raise
            self._give_up()
            raise TimeoutError from None

    def _give_up(self) -> None:
        """Drop the connection, and break off what the server does for it."""
        if self.pgconn.transaction_status == pq.TransactionStatus.ACTIVE:
            # Where libpq is older than 17, the server notices within two seconds.
            with suppress(psycopg.Error):
                request = self.pgconn.cancel_conn()
                request.start()
                task = asyncio.create_task(_send_cancellation(request))
                self.cancellations.add(task)
                task.add_done_callback(self.cancellations.discard)
        self.pgconn.finish()


async def _send_cancellation(request: PGcancelConn) -> None:
    with suppress(psycopg.Error):
        await waiting.wait_conn_async(
            generators.cancel(request), interval=_CANCEL_SECONDS, timeout=_CANCEL_SECONDS
        )


class Database:
    """A few connections to one database, opened when needed and reused.

    A pool of its own would hide why a connection failed behind a time-out, and a command that
    asks one question would pay for its workers.

    `losses`: how often a follower lost its connection. Where a failover came between, what was
    committed before may be gone.
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
        self._idle: list[_Connection] = []
        self._cancellations: set[asyncio.Task[None]] = set()
        self._closed = False
        self._limit = limit
        self._slots = asyncio.Semaphore(limit)

    @cached_property
    def kv(self) -> KeyValues:
        """The key-value store of this database."""
        from .kv import KeyValues

        return KeyValues(self)

    async def connect(self) -> _Connection:
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

    async def _connect(self) -> _Connection:
        parameters = parse_dsn(self.dsn)
        parameters.setdefault("connect_timeout", CONNECT_SECONDS)
        parameters.setdefault("application_name", "assistant")
        parameters.setdefault("tcp_user_timeout", 10_000)
        if "," in str(parameters.get("host", "")):
            parameters.setdefault("target_session_attrs", "read-write")
        try:
            # Always UTF-8, whatever PGCLIENTENCODING says: values must come out as they went in.
            connection = await _Connection.connect(
                "", autocommit=True, **{**parameters, "client_encoding": "utf8"}
            )
            connection.cancellations = self._cancellations
            connection.add_notice_handler(connection.notice)
            row = await (await connection.execute(_SESSION)).fetchone()
            if row is not None and row[0] != connection.info.backend_pid:
                connection.pooled = True
                connection.prepare_threshold = None
            return connection
        except psycopg.Error as error:
            raise_refused_connection(error)
        except UnicodeError:
            host = parameters.get("host")
            raise ConfigurationError(f"{host!r} in the database URL is no name of a host") from None

    @asynccontextmanager
    async def connection(self, patience: float = PATIENCE_SECONDS) -> AsyncIterator[Connection]:
        """Lend a connection in autocommit; `patience` in seconds bounds the waiting for answers.

        What was given up on another has been broken off before, if the server could be reached
        within a second: it must not come after what is newer.

        Raises:
            AssistantError: what the database said, as one of the program's own errors.
        """
        async with self._slots:
            await self._finish_cancellations()
            connection = await self._take()
            try:
                connection.deadline = monotonic() + patience
                yield connection
                _require_confirmed(connection)
            except psycopg.Error as error:
                if (error.sqlstate or "08").startswith(_GONE):
                    await self._drop(connection)
                raise translate(error) from error
            except TimeoutError as error:
                await self._drop(connection)
                raise DatabaseUnreachableError(
                    f"the database did not answer within {patience:.0f}s"
                ) from error
            finally:
                await self._give_back(connection)

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
        await self._finish_cancellations()

    async def _finish_cancellations(self) -> None:
        if self._cancellations:
            await asyncio.wait(self._cancellations)

    async def _take(self) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if not _hung_up(connection):
                return connection
            await connection.close()
        return await self.connect()

    async def _drop(self, connection: _Connection) -> None:
        """Close a connection that has failed, and the idle ones, which are likely no better."""
        await connection.close()
        await self._close_idle()

    async def _close_idle(self) -> None:
        while self._idle:
            await self._idle.pop().close()

    async def _give_back(self, connection: _Connection) -> None:
        connection.deadline = inf
        idle = connection.pgconn.transaction_status == pq.TransactionStatus.IDLE
        room = not self._closed and len(self._idle) < self._limit
        if idle and room and not connection.unconfirmed:
            self._idle.append(connection)
        else:
            await connection.close()


def is_pooled(connection: Connection) -> bool:
    """Whether a pooler stands between this connection and the server."""
    return isinstance(connection, _Connection) and connection.pooled


def _require_confirmed(connection: _Connection) -> None:
    """Refuse to call done what a failover may undo: the wait for the standbys was broken off."""
    if connection.unconfirmed:
        raise DatabaseUnreachableError(
            "the standbys have not confirmed it; it is kept here, but a failover may lose it"
        )


def _hung_up(connection: _Connection) -> bool:
    """Whether the server said goodbye while nobody looked: an idle socket has nothing to read."""
    import select

    if connection.closed:
        return True
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))
