"""A watch of keys as a library: what it leaves behind, and that it holds nobody up."""

from __future__ import annotations

from contextlib import aclosing

import pytest
from psycopg import AsyncConnection

from assistant_cli.store import follow
from assistant_cli.store.database import Database
from assistant_cli.store.kv import KeyValues
from assistant_cli.store.watch import Entry

from .hosting import rows, until
from .stored_keys import upsert


async def test_a_watch_that_ends_leaves_a_connection_that_listens_no_more(
    database: Database,
) -> None:
    await database.kv.set("k", 1)
    async with aclosing(database.kv.watch("k")) as changes:
        await anext(changes)
    assert await rows(database, "SELECT pg_listening_channels()") == []
    backends = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    assert await rows(database, backends) == [1]


async def test_whoever_is_busy_with_a_change_keeps_the_server_from_nothing(
    kv: KeyValues, plain: AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "_BUSY_SECONDS", 0.1)
    await upsert(plain, "k", "1")
    listening = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND pid <> %s"
    async with aclosing(kv.watch("k")) as changes:
        assert (await anext(changes)).revision > 0
        await until(lambda: is_gone(plain, listening), "the end of the connection")
        for number in range(3):
            await kv.set("k", number)
        await kv.set("k", "last")
        async for change in changes:
            if isinstance(change, Entry) and change.value == "last":
                break


async def is_gone(plain: AsyncConnection, query: str) -> bool:
    return (await plain.execute(query, (plain.info.backend_pid,))).rowcount == 0
