"""Following the database: read, wait for a hint, read again.

A notification is a hint that state changed, never the state. It can be lost (a pooler, a
broken connection, a restart), so every follower also reads again after a while, which doubles
as the proof that its connection is alive. Once reads keep finding changes that no hint
announced, hints evidently do not arrive, and it reads more often.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from typing import TypeVar

import psycopg
from psycopg import sql

from ..errors import DatabaseUnreachableError
from .database import Connection, Database, is_pooled
from .refusals import translate

log = logging.getLogger(__name__)

T = TypeVar("T")
Hints = set[str] | None
Read = Callable[[Connection, Hints], Awaitable[T | None]]

POLL_SECONDS = 5.0
_READ_SECONDS = 10.0
_UNLISTEN_SECONDS = 1.0
_BUSY_SECONDS = 5.0
POLL_SECONDS_WITHOUT_HINTS = 1.0
_BACKOFF_SECONDS = (0.1, 0.2, 0.5, 1.0, 2.0)
_LOST = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    psycopg.errors.ReadOnlySqlTransaction,
    TimeoutError,
)


async def follow(
    database: Database,
    channel: str,
    read: Read[T],
    *,
    poll: float = POLL_SECONDS,
    standby: bool = False,
) -> AsyncGenerator[T]:
    """Yield what `read` returns, at once and after every change; outlives lost connections.

    `read` gets the payloads that arrived since its last call, or None for "anything may have
    changed", and returns None where nothing did. It may be called although nothing changed.
    `standby`: also follow a standby, which may be behind; not for a `read` that writes.

    Raises:
        AssistantError: the first connection fails, or a later one for a reason that waiting
            does not mend.
    """
    failures = 0
    connected = False
    while True:
        try:
            async with database.lasting_connection() as connection:
                connected = True
                async with aclosing(_states(connection, channel, read, poll, standby)) as states:
                    async for state in states:
                        failures = 0
                        yield state
            continue
        except DatabaseUnreachableError:
            if not connected:
                raise
        database.losses += 1
        failures += 1
        if failures == 1:
            log.warning("lost the database; trying again until it is back")
        await asyncio.sleep(_BACKOFF_SECONDS[min(failures, len(_BACKOFF_SECONDS)) - 1])


async def _states(
    connection: Connection, channel: str, read: Read[T], poll: float, standby: bool
) -> AsyncGenerator[T]:
    """Yield on one connection; ends where that was closed during a yield."""
    now = asyncio.get_running_loop().time
    payloads: list[str] = []
    look_at_all = now()
    unannounced = -1  # the first read is no surprise
    try:
        if not await listen(connection, channel, standby=standby):
            poll = min(poll, POLL_SECONDS_WITHOUT_HINTS)
        while True:
            # Hints about other things, however many, must not put off the look at everything.
            complete = not payloads or "" in payloads or now() >= look_at_all
            async with asyncio.timeout(_READ_SECONDS):
                state = await read(connection, None if complete else set(payloads))
            if payloads:
                unannounced = 0
            elif state is not None:
                unannounced += 1
            if state is not None:
                with _let_go_while_busy(connection):
                    yield state
                if connection.closed:
                    return
            wait = min(poll, POLL_SECONDS_WITHOUT_HINTS) if unannounced > 1 else poll
            look_at_all = now() + wait if complete else look_at_all
            pause = max(0.0, look_at_all - now())
            payloads = [
                notify.payload async for notify in connection.notifies(timeout=pause, stop_after=1)
            ]
    except _LOST as error:
        with suppress(psycopg.Error):
            await connection.close()
        raise DatabaseUnreachableError("the connection was lost") from error
    except psycopg.Error as error:
        raise translate(error) from error
    finally:
        await _stop_listening(connection)


async def listen(connection: Connection, channel: str, *, standby: bool) -> bool:
    """Have hints sent; False: a pooler keeps them, or this is a standby or an engine without."""
    if is_pooled(connection):
        return False
    try:
        async with asyncio.timeout(_READ_SECONDS):
            await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
    except psycopg.errors.FeatureNotSupported:
        return False
    except psycopg.errors.ReadOnlySqlTransaction:
        if not standby:
            raise
        return False
    return True


@contextmanager
def _let_go_while_busy(connection: Connection) -> Iterator[None]:
    """Close the connection if the follower takes long over a state that it was given.

    Nobody reads the connection meanwhile. Once its buffers are full, the server has to keep the
    notifications of all sessions for it, until its queue is full and commits fail.
    """
    timer = asyncio.get_running_loop().call_later(_BUSY_SECONDS, connection.pgconn.finish)
    try:
        yield
    finally:
        timer.cancel()


async def _stop_listening(connection: Connection) -> None:
    """Leave a connection as it was, or close it."""
    if connection.closed:
        return
    try:
        async with asyncio.timeout(_UNLISTEN_SECONDS):
            await connection.execute("UNLISTEN *")
    except (psycopg.Error, TimeoutError):
        await connection.close()
