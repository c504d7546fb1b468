"""Keys as other programs write and read them, with plain SQL."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import AsyncConnection

UPSERT = "INSERT INTO kv (key, value) VALUES (%s, %s) ON CONFLICT (key) DO UPDATE SET value = %s"


async def upsert(connection: AsyncConnection, key: str, text: str) -> None:
    await connection.execute(UPSERT, (key, text, text))


async def expire(connection: AsyncConnection, key: str) -> None:
    moved = "UPDATE kv SET expires_at = now() - interval '1 second' WHERE key = %s"
    assert (await connection.execute(moved, (key,))).rowcount == 1


def put(sql: psycopg.Connection[Any], key: str, text: str) -> None:
    sql.execute(UPSERT, (key, text, text))


def stored(sql: psycopg.Connection[Any]) -> dict[str, str]:
    return dict(sql.execute("SELECT key, value::text FROM kv").fetchall())
