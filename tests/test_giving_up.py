"""What is given up is over before what is newer, and whoever gives it up is told soon."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from assistant_cli import StatusBoard
from assistant_cli.errors import DatabaseUnreachableError
from assistant_cli.store import database as database_module
from assistant_cli.store import follow as follow_module
from assistant_cli.store.database import Connection, Database
from assistant_cli.store.follow import Hints, follow

from .conftest import CommandLine, eventually, lock_waiters, until_locked
from .hosting import rows, until_equal
from .password_server import PasswordServer
from .pooler import needs_pgbouncer

UPSERT = (
    "INSERT INTO kv (key, value) SELECT 'x', to_jsonb(%s::text) FROM pg_sleep(%s) "
    "ON CONFLICT (key) DO UPDATE SET value = excluded.value"
)


OTHERS = (
    "SELECT count(*) FROM pg_stat_activity "
    "WHERE datname = current_database() AND state = 'active' AND pid <> pg_backend_pid()"
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


async def rows_soon(database: Database, query: str, *parameters: object) -> None:
    async with database.connection(patience=0.2) as connection:
        await connection.execute(query.encode(), parameters)


async def give_up(database: Database, value: str) -> None:
    with pytest.raises(DatabaseUnreachableError, match=r"did not answer within 0\.2s"):
        await rows_soon(database, UPSERT, value, 1)


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


async def test_it_does_not_come_after_what_is_newer_in_another_program_either(
    database: Database, dsn: str
) -> None:
    program = Database(dsn)
    with stopped(await backend_of(program)):
        await give_up(program, "older")
        await database.kv.set("x", "newer")
    left = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'INSERT INTO kv%%'"
    await until_equal(database, left, [0])
    await program.close()
    assert await database.kv.get("x") == "newer"


@pytest.mark.parametrize("older", ["older", "older" * 150_000], ids=["small", "large"])
@pytest.mark.parametrize("alone", [False, True], ids=["shared commit", "own commit"])
async def test_a_value_that_is_given_up_does_not_come_after_what_another_program_sets(
    database: Database, dsn: str, older: str, alone: bool
) -> None:
    program = Database(dsn)
    with stopped(await backend_of(program)):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await program.kv.set("x", older, create=alone)
        await database.kv.set("x", "newer")
    await until_equal(database, OTHERS, [0])
    await program.close()
    assert await database.kv.get("x") == "newer"


async def test_an_update_that_is_given_up_does_not_come_after_that_of_another_program(
    database: Database, dsn: str
) -> None:
    program = Database(dsn)
    with stopped(await backend_of(program)):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await StatusBoard(program).update("backup", {"status": "failed"})
        await StatusBoard(database).update("backup", {"status": "idle"})
    await until_equal(database, OTHERS, [0])
    await program.close()
    assert await database.kv.get_text("status_board", "$.backup.status") == ['"idle"']


async def test_a_write_that_is_given_up_before_it_is_begun_is_not_begun(
    database: Database, dsn: str
) -> None:
    await database.kv.set("locked", 1)
    with psycopg.connect(dsn) as other:
        other.execute("UPDATE kv SET value = '2' WHERE key = 'locked'")
        waiting = asyncio.create_task(database.kv.set("locked", 3))
        await until_locked(dsn, 1)
        given_up = asyncio.create_task(database.kv.set("x", "older"))
        await asyncio.sleep(0)
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        await database.kv.set("x", "newer", create=True)
        other.commit()
    await waiting
    await database.kv.set("the next", 1)
    assert await database.kv.get("x") == "newer"


@pytest.mark.parametrize("kind", ["value", "status"])
async def test_a_write_that_is_given_up_while_its_commit_waits_for_a_connection_is_not_sent(
    database: Database, dsn: str, kind: str
) -> None:
    program = Database(dsn, limit=1)
    board = StatusBoard(program)
    async with program.connection():
        writes = (
            [program.kv.set("x", "older"), program.kv.set("y", 1)]
            if kind == "value"
            else [board.update("x", {"status": "failed"}), board.update("y", {"status": "idle"})]
        )
        given_up, kept = (asyncio.ensure_future(write) for write in writes)
        for _ in range(10):
            await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.wait([given_up])
    await kept
    stored = await database.kv.get("status_board") or await database.kv.list_keys()
    assert ("x" in stored, "y" in stored) == (False, True)
    await program.close()


async def test_what_waits_behind_a_commit_that_was_cancelled_is_written(
    database: Database, dsn: str
) -> None:
    with psycopg.connect(dsn) as other:
        other.execute("LOCK TABLE kv")
        before = asyncio.all_tasks()
        first = asyncio.create_task(database.kv.set("x", 1))
        await until_locked(dsn, 1)
        (committing,) = asyncio.all_tasks() - before - {first}
        behind = asyncio.create_task(database.kv.set("y", 1))
        await asyncio.sleep(0)
        committing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        other.rollback()
        async with asyncio.timeout(10):
            await behind
    assert await database.kv.list_keys() == ["y"]


async def test_a_later_value_of_a_batch_that_is_given_up_is_not_stored(
    database: Database, dsn: str
) -> None:
    await database.kv.set("x", 1)
    with psycopg.connect(dsn) as other:
        other.execute("UPDATE kv SET value = '2'")
        first, given_up = (asyncio.create_task(database.kv.set("x", n)) for n in (3, 4))
        await until_locked(dsn, 1)
        given_up.cancel()
        await asyncio.sleep(0)
        other.commit()
    with pytest.raises(asyncio.CancelledError):
        await given_up
    await first
    await database.kv.set("the next", 1)
    assert await database.kv.get("x") == 3


async def test_writes_go_on_after_what_commits_them_was_cancelled_before_it_began(
    database: Database,
) -> None:
    before = asyncio.all_tasks()
    write = asyncio.create_task(database.kv.set("x", 1))
    await asyncio.sleep(0)
    begun = asyncio.all_tasks() - before
    assert len(begun) == 2
    for task in begun:
        task.cancel()
    await asyncio.gather(*begun, return_exceptions=True)
    assert write.cancelled()
    async with asyncio.timeout(10):
        await database.kv.set("x", 2)


async def test_who_may_not_end_a_session_goes_on_without(
    dsn: str, sql: psycopg.Connection[Any]
) -> None:
    role = f"watcher_{uuid4().hex}"
    sql.execute(f"CREATE ROLE {role} IN ROLE pg_monitor".encode())
    acting = Database(make_conninfo(dsn, options=f"-c role={role}"))
    try:
        with stopped(await backend_of(acting)):
            with pytest.raises(DatabaseUnreachableError):
                await rows_soon(acting, "SELECT pg_sleep(1)")
            assert await rows(acting, "SELECT current_user::text") == [role]
    finally:
        await acting.close()
        sql.execute(f"DROP ROLE {role}".encode())


@needs_pgbouncer
async def test_a_pooler_outlives_those_who_give_up_twice(pooled_dsn: str) -> None:
    database = Database(pooled_dsn)

    async def give_up_often() -> None:
        for number in range(200):
            async with database.connection() as connection:
                use = asyncio.create_task(connection.execute("SELECT pg_sleep(0.008)"))
                await asyncio.sleep(0.002)
                use.cancel()
                await asyncio.sleep(0.0004 * (number % 6))
                use.cancel()
                await asyncio.gather(use, return_exceptions=True)

    try:
        await asyncio.gather(give_up_often(), give_up_often())
        assert await rows(database, "SELECT 'there'") == ["there"]
    finally:
        await database.close()


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


@pytest.fixture
def waiting(sql: psycopg.Connection[Any], dsn: str) -> Iterator[Callable[[], int | None]]:
    """The process of the server for whoever waits for the table of keys, which is locked."""

    def find() -> int | None:
        return min(lock_waiters(sql), default=None)

    with psycopg.connect(dsn) as other:
        other.execute("LOCK TABLE kv")
        yield find


@pytest.mark.parametrize(
    "command", [("kv", "set", "k", "1"), ("report", "backup", "idle"), ("kv", "rm", "k")]
)
def test_ctrl_c_while_something_is_written_says_nothing_and_breaks_it_off(
    assistant: CommandLine, waiting: Callable[[], int | None], command: tuple[str, ...]
) -> None:
    process = assistant.start(*command)
    eventually(waiting, "the command to wait")
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20) == ("", "")
    assert process.returncode == 130
    assert not waiting()


def test_a_second_ctrl_c_ends_it_at_once_and_says_nothing(
    assistant: CommandLine, waiting: Callable[[], int | None]
) -> None:
    process = assistant.start("kv", "set", "k", "1")
    eventually(waiting, "the command to wait")
    backend = waiting()
    assert backend is not None
    with stopped(backend):
        process.send_signal(signal.SIGINT)
        # The first is handled once it is being broken off.
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        process.send_signal(signal.SIGINT)
        # After the first alone it would leave after two seconds.
        assert process.communicate(timeout=1.5) == ("", "")
    assert process.returncode == 130


def test_a_run_that_cannot_open_the_board_leaves_on_the_first_signal(
    assistant: CommandLine, waiting: Callable[[], int | None]
) -> None:
    process = assistant.start("run")
    eventually(waiting, "the run to wait")
    process.terminate()
    _, err = process.communicate(timeout=10)
    assert process.returncode == 69
    assert "could not write that the agents have stopped" in err


@pytest.mark.parametrize(("ended_by", "code"), [("its reader", 141), ("ctrl-c", 130)])
def test_an_export_from_a_server_that_hangs_ends(
    assistant: CommandLine, sql: psycopg.Connection[Any], ended_by: str, code: int
) -> None:
    sql.execute("INSERT INTO kv SELECT n::text, to_jsonb(n) FROM generate_series(1, 100000) n")
    copying = (
        "SELECT min(pid) FROM pg_stat_activity WHERE datname = current_database() "
        "AND query LIKE '%COPY%' AND state = 'active' AND pid <> pg_backend_pid()"
    )

    def backend() -> int:
        row = sql.execute(copying).fetchone()
        return (row and row[0]) or 0

    reading, writing = os.pipe()
    reader = os.fdopen(reading, "rb")
    try:
        process = assistant.start("kv", "export", stdout=writing)
        eventually(backend, "the export")
        if ended_by == "ctrl-c":
            eventually(lambda: not select.select([], [writing], [], 0)[1], "a full pipe")
        with stopped(backend()):
            if ended_by == "ctrl-c":
                process.send_signal(signal.SIGINT)
            else:
                reader.close()
            assert process.wait(10) == code
    finally:
        reader.close()
        os.close(writing)
