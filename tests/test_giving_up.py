"""What is given up is over before what is newer, and whoever gives it up is told soon."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from typing import Any

import psycopg
import pytest

from assistant_cli.errors import DatabaseUnreachableError
from assistant_cli.store import database as database_module
from assistant_cli.store import follow as follow_module
from assistant_cli.store.database import Connection, Database
from assistant_cli.store.follow import Hints, follow

from .conftest import CommandLine, eventually, until_locked
from .hosting import rows, until_equal
from .password_server import PasswordServer
from .pooler import needs_pgbouncer

UPSERT = (
    "INSERT INTO kv (key, value) SELECT 'x', to_jsonb(%s::text) FROM pg_sleep(%s) "
    "ON CONFLICT (key) DO UPDATE SET value = excluded.value"
)


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process of the server that hangs."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def backend_of(database: Database) -> int:
    (pid,) = await rows(database, "SELECT pg_backend_pid()")
    return int(pid)


async def give_up(database: Database, value: str) -> None:
    with pytest.raises(DatabaseUnreachableError, match="did not answer"):
        async with database.connection(patience=0.2) as connection:
            await connection.execute(UPSERT, (value, 1))


async def test_what_is_cancelled_is_broken_off_before_the_caller_is_told(
    database: Database, dsn: str
) -> None:
    with psycopg.connect(dsn) as other:
        other.execute("LOCK TABLE kv")
        async with database.connection() as connection:
            write = asyncio.create_task(connection.execute("DELETE FROM kv"))
            await until_locked(dsn, 1)
            write.cancel()
            with pytest.raises(asyncio.CancelledError):
                await write
        waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        assert await rows(database, waiting) == []


async def test_what_a_process_of_the_server_has_not_read_yet_does_not_come_after_what_is_newer(
    database: Database,
) -> None:
    hanging = await backend_of(database)
    with stopped(hanging):
        await give_up(database, "older")
        await database.kv.set("x", "newer")
    left = f"SELECT count(*) FROM pg_stat_activity WHERE pid = {hanging}"
    await until_equal(database, left, [0])
    assert await database.kv.get("x") == "newer"


@needs_pgbouncer
async def test_behind_a_pooler_it_is_broken_off_as_well(
    pooled_dsn: str, password_server: PasswordServer
) -> None:
    database = Database(pooled_dsn)
    try:
        await give_up(database, "older")
        await database.kv.set("x", "newer")
        running = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE %s AND state = 'active'"
        with psycopg.connect(password_server.url()) as direct:
            assert direct.execute(running, ("INSERT INTO kv%",)).fetchone() == (0,)
        assert await database.kv.get("x") == "newer"
    finally:
        await database.close()


@needs_pgbouncer
async def test_a_connection_on_which_nothing_is_answered_is_given_up(
    pooled_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "CONNECT_SECONDS", 1)
    others = [await psycopg.AsyncConnection.connect(pooled_dsn) for _ in range(4)]
    try:
        for other in others:
            await other.execute("SELECT 1")
        with pytest.raises(DatabaseUnreachableError, match="lets us in, but does not answer"):
            await Database(pooled_dsn).connect()
    finally:
        for other in others:
            await other.close()


async def test_whoever_follows_leaves_a_connection_that_hangs(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow_module, "_READ_SECONDS", 0.2)

    async def read(connection: Connection, hints: Hints) -> bool:
        return True

    with stopped(await backend_of(database)):
        async with asyncio.timeout(10), aclosing(follow(database, "channel", read)) as states:
            assert await anext(states)


@pytest.mark.parametrize(
    "command", [("kv", "set", "k", "1"), ("report", "backup", "idle"), ("kv", "rm", "k")]
)
def test_ctrl_c_while_something_is_written_says_nothing_and_breaks_it_off(
    assistant: CommandLine, sql: psycopg.Connection[Any], dsn: str, command: tuple[str, ...]
) -> None:
    locked = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND pid <> %s"
    with psycopg.connect(dsn) as other:
        other.execute("LOCK TABLE kv")

        def waiting() -> bool:
            return sql.execute(locked, (other.info.backend_pid,)).fetchone() != (0,)

        process = assistant.start(*command)
        eventually(waiting, "the command to wait")
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=20) == ("", "")
        assert process.returncode == 130
        assert not waiting()
