"""The status board: what is on it is committed, and what is no entry is refused."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from assistant_cli import StatusBoard, create_status_board
from assistant_cli.errors import BadDataError, ConflictError, DatabaseUnreachableError
from assistant_cli.store import leases
from assistant_cli.store.database import Database

from .conftest import CommandLine
from .stored_board import IDLE, blocked, events, lock_the_board, store, stored


async def test_a_new_board_has_both_agents_idle_in_the_documented_shape(
    database: Database, sql: psycopg.Connection[Any]
) -> None:
    board = await create_status_board(database)
    shape = {"conversation": IDLE, "heartbeat": IDLE}
    assert stored(sql) == shape
    assert board.get() == shape
    assert events(sql, "heartbeat") == [("idle", None)]


async def test_get_returns_a_copy(database: Database) -> None:
    board = await create_status_board(database)
    board.get()["heartbeat"]["status"] = "failed"
    board.get().clear()
    assert board.get()["heartbeat"] == IDLE


async def test_an_update_that_returned_is_seen_by_others(
    database: Database, sql: psycopg.Connection[Any]
) -> None:
    board = await create_status_board(database)
    for number in range(20):
        entry = {"status": "running", "detail": f"step {number}"}
        await board.update("heartbeat", entry)
        assert stored(sql)["heartbeat"] == entry == board.get()["heartbeat"]


async def test_memory_changes_only_after_the_commit(
    database: Database, dsn: str, sql: psycopg.Connection[Any]
) -> None:
    board = await create_status_board(database)
    running = {"status": "running", "detail": "a"}
    with lock_the_board(dsn) as lock:
        update = asyncio.create_task(board.update("heartbeat", running))
        await blocked(sql)
        assert board.get()["heartbeat"] == IDLE
        assert not update.done()
        lock.rollback()
        await update
    assert board.get()["heartbeat"] == stored(sql)["heartbeat"] == running


async def test_format_says_it_in_lines(database: Database) -> None:
    board = await create_status_board(database)
    await board.update("heartbeat", {"status": "running", "detail": "writing a recipe"})
    assert board.format() == "conversation: idle\nheartbeat: running — writing a recipe"


async def test_format_has_the_order_of_status_also_once_the_board_is_stored(
    database: Database, assistant: CommandLine
) -> None:
    await StatusBoard(database).update("backup", IDLE)
    await create_status_board(database)
    board = await create_status_board(database)
    lines = assistant("status").out.splitlines()
    assert board.format().splitlines() == [": ".join(line.split("\t")[:2]) for line in lines]
    assert board.format() == "conversation: idle\nheartbeat: idle\nbackup: idle"


async def test_a_detail_cannot_look_like_another_agents_entry(database: Database) -> None:
    board = await create_status_board(database)
    await board.update("heartbeat", {"status": "idle", "detail": "x\nconversation: failed"})
    assert board.format() == "conversation: idle\nheartbeat: idle — x conversation: failed"


async def test_a_missing_detail_is_none(database: Database, sql: psycopg.Connection[Any]) -> None:
    await StatusBoard(database).update("backup", {"status": "idle"})
    assert stored(sql) == {"backup": IDLE}


@pytest.mark.parametrize(
    ("agent", "entry"),
    [
        ("heartbeat", {"status": "busy"}),
        ("heartbeat", {"status": None}),
        ("heartbeat", {"detail": "no status"}),
        ("heartbeat", {}),
        ("heartbeat", {"status": "idle", "since": "now"}),
        ("heartbeat", {"status": "idle", "detail": 5}),
        ("heartbeat", {"status": "idle", "detail": ["a"]}),
        ("heartbeat", {"status": "idle", "detail": "a\x00b"}),
        ("heartbeat", {"status": "idle", "detail": "\ud800"}),
        ("heartbeat", {"status": "idle", "detail": "ä" * 1001}),
        ("", IDLE),
        ("two words", IDLE),
        ("\x1b[31m", IDLE),
        ("-n", IDLE),
        ("x" * 101, IDLE),
    ],
)
async def test_what_is_no_entry_is_refused_and_nothing_is_written(
    database: Database, sql: psycopg.Connection[Any], agent: str, entry: dict[str, Any]
) -> None:
    board = await create_status_board(database)
    with pytest.raises(BadDataError):
        await board.update(agent, entry)
    assert stored(sql) == board.get() == {"conversation": IDLE, "heartbeat": IDLE}


async def test_an_update_whose_connection_is_lost_fails_and_the_next_one_works(
    database: Database, dsn: str, sql: psycopg.Connection[Any]
) -> None:
    board = await create_status_board(database)
    with lock_the_board(dsn) as lock:
        update = asyncio.create_task(board.update("heartbeat", {"status": "running"}))
        sql.execute("SELECT pg_terminate_backend(%s)", (await blocked(sql),))
        with pytest.raises(DatabaseUnreachableError):
            await update
        lock.rollback()
    assert board.get()["heartbeat"] == IDLE == stored(sql)["heartbeat"]
    await board.update("heartbeat", {"status": "failed"})
    assert stored(sql)["heartbeat"]["status"] == "failed"


async def test_an_idle_connection_that_the_server_closed_is_not_used(
    database: Database, sql: psycopg.Connection[Any]
) -> None:
    board = await create_status_board(database)
    sql.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    await board.update("heartbeat", {"status": "running"})
    assert stored(sql)["heartbeat"]["status"] == "running"


@pytest.mark.parametrize("garbage", [5, ["a"], "text", None, {"conversation": 7}, {"x": {}}])
async def test_garbage_in_place_of_the_board_is_survived(
    database: Database, sql: psycopg.Connection[Any], assistant: CommandLine, garbage: Any
) -> None:
    store(sql, garbage)
    assert StatusBoard(database).format() == ""
    board = StatusBoard(database)
    await board.read()
    board.format()
    seen = assistant("status", "--json")
    assert (seen.code, seen.err) == (0, "")
    await create_status_board(database)
    assert {name: stored(sql)[name] for name in ("conversation", "heartbeat")} == {
        "conversation": IDLE,
        "heartbeat": IDLE,
    }


async def test_a_board_that_expired_is_a_new_one(
    database: Database, sql: psycopg.Connection[Any]
) -> None:
    store(sql, {"old": IDLE})
    sql.execute("UPDATE kv SET expires_at = now() + '1 hour'")
    await StatusBoard(database).update("new", {"status": "idle"})
    assert sql.execute("SELECT expires_at FROM kv").fetchone() == (None,)


async def test_a_new_board_refuses_while_a_running_process_holds_an_agent(
    database: Database, dsn: str, sql: psycopg.Connection[Any]
) -> None:
    await leases.acquire(database, ["heartbeat"])
    with pytest.raises(ConflictError, match=r"heartbeat is held by host .*, pid "):
        await create_status_board(database)
    assert "heartbeat" not in (stored(sql) or {})


async def test_a_board_that_python_cannot_read_is_none(database: Database) -> None:
    async with database.connection() as connection:
        await connection.execute(
            "INSERT INTO kv (key, value) VALUES ('status_board', '{\"x\": 1e5000}')"
        )
    board = await create_status_board(database)
    assert board.get().keys() == {"conversation", "heartbeat"}
