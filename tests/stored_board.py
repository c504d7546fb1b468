"""The board and its history as other programs see, change and lock them, with plain SQL."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import psycopg

from .conftest import eventually, lock_waiters
from .stored_keys import put

IDLE = {"status": "idle", "detail": None}


def stored(sql: psycopg.Connection[Any]) -> Any:
    row = sql.execute("SELECT value FROM kv WHERE key = 'status_board'").fetchone()
    return row and row[0]


def store(sql: psycopg.Connection[Any], board: Any) -> None:
    put(sql, "status_board", json.dumps(board))


def events(sql: psycopg.Connection[Any], agent: str) -> list[tuple[Any, ...]]:
    query = "SELECT status, detail FROM assistant.board_events WHERE agent = %s ORDER BY id"
    return sql.execute(query, (agent,)).fetchall()


async def blocked(sql: psycopg.Connection[Any]) -> int:
    """The backend that waits for a lock, once one does."""
    await asyncio.to_thread(eventually, lambda: lock_waiters(sql), "a backend that waits")
    return lock_waiters(sql)[0]


def lock_the_board(dsn: str) -> psycopg.Connection[Any]:
    connection = psycopg.connect(dsn)
    connection.execute("SELECT 1 FROM kv WHERE key = 'status_board' FOR UPDATE")
    return connection
