"""The history of the board: each transition is recorded, once, and tells since when."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg

from assistant_cli import StatusBoard, create_status_board
from assistant_cli.store import leases
from assistant_cli.store.database import Database

from .stored_board import IDLE, events, store


async def test_since_changes_with_the_status_and_not_with_the_detail(
    database: Database, sql: psycopg.Connection[Any]
) -> None:
    board = StatusBoard(database)

    async def since(status: str, detail: str | None) -> Any:
        await board.update("backup", {"status": status, "detail": detail})
        row = sql.execute("SELECT since, updated_at FROM assistant.agent_status").fetchone()
        assert row is not None
        assert row[0] <= row[1]
        return row[0]

    began = await since("running", "a")
    assert await since("running", "b") == began
    assert await since("running", None) == began
    ended = await since("idle", None)
    assert ended > began
    assert await since("running", None) > ended


async def test_an_agent_that_comes_back_on_the_board_as_it_was_has_been_so_since_then(
    database: Database, sql: psycopg.Connection[Any]
) -> None:
    board = StatusBoard(database)
    for detail in ("a", "b"):
        await board.update("backup", {"status": "running", "detail": detail})
    query = "SELECT since, updated_at FROM assistant.agent_status"
    was = sql.execute(query).fetchone()
    sql.execute("DELETE FROM kv WHERE key = 'status_board'")
    await board.update("backup", {"status": "running", "detail": "b"})
    assert sql.execute(query).fetchone() == was
    for overwritten in ('"oops"', "{}", '{"backup": null}', '{"backup": "oops"}'):
        sql.execute("UPDATE kv SET value = %s", [overwritten])
        await board.update("backup", {"status": "running", "detail": "b"})
    assert sql.execute(query).fetchone() == was
    assert events(sql, "backup") == [("running", "a"), ("running", "b")]


async def test_a_status_from_before_events_were_recorded_is_known_since_the_first_of_them(
    database: Database, sql: psycopg.Connection[Any]
) -> None:
    store(sql, {"backup": {"status": "running", "detail": "a"}})
    sql.execute("TRUNCATE assistant.board_events")
    query = "SELECT since FROM assistant.agent_status"
    assert sql.execute(query).fetchone() == (None,)
    for detail in ("b", "c"):
        await StatusBoard(database).update("backup", {"status": "running", "detail": detail})
    first = sql.execute("SELECT min(at) FROM assistant.board_events").fetchone()
    assert sql.execute(query).fetchone() == first


async def test_an_update_that_says_the_same_again_is_no_transition(
    database: Database, sql: psycopg.Connection[Any]
) -> None:
    board = StatusBoard(database)
    entry = {"status": "running", "detail": "a"}
    for _ in range(3):
        await board.update("backup", entry)
    await asyncio.gather(*(board.update("backup", entry) for _ in range(10)))
    assert events(sql, "backup") == [("running", "a")]


async def test_transitions_that_plain_sql_makes_are_recorded(
    database: Database, sql: psycopg.Connection[Any]
) -> None:
    store(sql, {"a": {"status": "running", "detail": "1"}, "b": IDLE})
    store(sql, {"a": {"status": "running", "detail": "2"}, "b": IDLE})
    await StatusBoard(database).update("a", {"status": "failed"})
    store(sql, {"a": {"status": "failed", "detail": None}, "b": {"status": "running"}})
    assert events(sql, "a") == [("running", "1"), ("running", "2"), ("failed", None)]
    assert events(sql, "b") == [("idle", None), ("running", None)]


async def test_the_view_has_a_row_an_agent(
    database: Database, sql: psycopg.Connection[Any]
) -> None:
    board = await create_status_board(database)
    await board.update("backup", {"status": "running", "detail": "disk"})
    lease = await leases.acquire(database, ["heartbeat"])
    await leases.acquire(database, ["conversation"])
    sql.execute(
        "UPDATE assistant.leases SET expires_at = now() - interval '1 second', host = 'gone', "
        "pid = 7 WHERE agent = 'conversation'"
    )
    rows = sql.execute(
        "SELECT agent, status, detail, since <= now(), live, stale, host, pid "
        "FROM assistant.agent_status ORDER BY agent"
    ).fetchall()
    (holder,) = await leases.find_holders(database, lease.agents)
    assert rows == [
        ("backup", "running", "disk", True, False, False, None, None),
        ("conversation", "idle", None, True, False, True, "gone", 7),
        ("heartbeat", "idle", None, True, True, False, holder.host, holder.pid),
    ]


async def test_an_agent_that_is_silent_or_new_costs_the_same_however_much_others_have_said(
    database: Database, sql: psycopg.Connection[Any]
) -> None:
    board = await create_status_board(database)
    await board.update("silent", IDLE)
    sql.execute(
        "INSERT INTO assistant.board_events (agent, status, detail, since) "
        "SELECT 'conversation', 'running', n::text, now() FROM generate_series(1, 50000) n"
    )
    sql.execute("ANALYZE assistant.board_events")

    def events_read_by(query: str) -> int:
        with sql.transaction():
            sql.execute(query)
            row = sql.execute(
                "SELECT seq_tup_read + coalesce(idx_tup_fetch, 0) "
                "FROM pg_stat_xact_user_tables WHERE relname = 'board_events'"
            ).fetchone()
        assert row is not None
        return int(row[0])

    board_update = 'UPDATE kv SET value = value || \'{{"{}": {{"status": "failed"}}}}\''
    assert events_read_by(board_update.format("conversation")) == 0
    assert events_read_by(board_update.format("silent")) == 0
    assert events_read_by(board_update.format("new")) < 20
    assert events_read_by("SELECT * FROM assistant.agent_status") < 20
