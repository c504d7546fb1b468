"""Plain SQL as the equal of the library: what other programs do to the table `kv`, and may."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import uuid4

import psycopg
import pytest
from psycopg import AsyncConnection, sql

from assistant_cli.errors import ConflictError
from assistant_cli.store.kv import KeyValues

from .stored_keys import expire, upsert
from .test_kv_writes import revision_of


async def test_a_plain_upsert_gets_a_new_revision_and_time(
    kv: KeyValues, plain: AsyncConnection
) -> None:
    await upsert(plain, "k", "1")
    first = await kv.get_entry("k")
    await upsert(plain, "k", "2")
    second = await kv.get_entry("k")
    assert first is not None
    assert second is not None
    assert second.text == "2"
    assert second.revision > first.revision > 0
    assert second.updated_at > first.updated_at
    with pytest.raises(ConflictError):
        await kv.set("k", 3, if_revision=first.revision)


async def test_plain_writers_cannot_forge_a_revision(kv: KeyValues, plain: AsyncConnection) -> None:
    revision = await kv.set("other", 1)
    await plain.execute("INSERT INTO kv (key, value, revision) VALUES ('k', '1', 999999)")
    assert revision < await revision_of(kv, "k") < 999999
    before = await revision_of(kv, "k")
    await plain.execute("UPDATE kv SET revision = 1")
    assert await revision_of(kv, "k") > before


async def test_a_plain_upsert_brings_an_expired_key_back(
    kv: KeyValues, plain: AsyncConnection
) -> None:
    await kv.set("k", "old", ttl=timedelta(hours=1))
    await expire(plain, "k")
    assert await kv.get("k") is None
    await upsert(plain, "k", '"new"')
    assert await kv.get("k") == "new"


async def test_a_plain_upsert_keeps_an_expiry_to_come(
    kv: KeyValues, plain: AsyncConnection
) -> None:
    await kv.set("k", "old", ttl=timedelta(hours=1))
    before = await kv.get_entry("k")
    await upsert(plain, "k", '"new"')
    after = await kv.get_entry("k")
    assert before is not None
    assert after is not None
    assert (after.value, after.expires_at) == ("new", before.expires_at)


@pytest.fixture
async def stranger(dsn: str, admin_dsn: str) -> AsyncIterator[AsyncConnection]:
    """A program with rights on the table `kv` and on nothing else."""
    role = sql.Identifier(f"stranger_{uuid4().hex[:12]}")
    async with await AsyncConnection.connect(dsn, autocommit=True) as connection:
        await connection.execute(sql.SQL("CREATE ROLE {}").format(role))
        grant = "GRANT SELECT, INSERT, UPDATE, DELETE ON kv TO {}"
        await connection.execute(sql.SQL(grant).format(role))
        await connection.execute(sql.SQL("SET ROLE {}").format(role))
        yield connection
        await connection.execute("RESET ROLE")
        await connection.execute(sql.SQL("DROP OWNED BY {}").format(role))
        await connection.execute(sql.SQL("DROP ROLE {}").format(role))


async def test_rights_on_the_table_suffice_for_plain_sql(
    kv: KeyValues, stranger: AsyncConnection
) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        await stranger.execute("SELECT * FROM assistant.leases")
    await upsert(stranger, "a", "1")
    first = await revision_of(kv, "a")
    await upsert(stranger, "a", "2")
    assert await revision_of(kv, "a") > first
    await stranger.execute("UPDATE kv SET key = 'b' WHERE key = 'a'")
    async with stranger.cursor() as cursor, cursor.copy("COPY kv (key, value) FROM STDIN") as copy:
        await copy.write_row(("c", "3"))
    await stranger.execute("INSERT INTO kv SELECT n::text, '0' FROM generate_series(1, 200) AS n")
    await stranger.execute("DELETE FROM kv WHERE key NOT IN ('b', 'c')")
    assert [(entry.key, entry.text) for entry in await kv.list_entries()] == [
        ("b", "2"),
        ("c", "3"),
    ]
    assert await revision_of(kv, "c") > await revision_of(kv, "b") > first


@pytest.mark.parametrize(
    ("statement", "payloads"),
    [
        ("UPDATE kv SET value = '2' WHERE key = 'a'", {"a"}),
        ("UPDATE kv SET value = '2' WHERE key = 'missing'", set()),
        ("UPDATE kv SET key = 'b' WHERE key = 'a'", {"", "b"}),
        ("INSERT INTO kv SELECT n::text, '0' FROM generate_series(1, 3) AS n", {"1", "2", "3"}),
        ("INSERT INTO kv SELECT n::text, '0' FROM generate_series(1, 101) AS n", {""}),
        ("INSERT INTO kv VALUES (repeat('long', 200), '0'), ('short', '0')", {"", "short"}),
        ("DELETE FROM kv", {"a"}),
        ("TRUNCATE kv", {""}),
    ],
)
async def test_what_changes_is_told_by_key_unless_it_is_too_much(
    kv: KeyValues, plain: AsyncConnection, statement: str, payloads: set[str]
) -> None:
    await kv.set("a", 1)
    await plain.execute("LISTEN assistant_kv")
    await plain.execute(statement.encode())
    await plain.execute("SELECT pg_notify('assistant_kv', 'the end')")
    told = [hint.payload async for hint in plain.notifies(timeout=10, stop_after=len(payloads) + 1)]
    assert (set(told), told[-1]) == ({*payloads, "the end"}, "the end")


async def test_the_board_written_by_a_stranger_makes_transitions(
    plain: AsyncConnection, stranger: AsyncConnection
) -> None:
    entry = '{{"heartbeat": {{"status": "{}", "detail": {}}}}}'
    await upsert(stranger, "status_board", entry.format("running", '"recipe"'))
    await upsert(stranger, "status_board", entry.format("running", '"recipe"'))
    await upsert(stranger, "status_board", entry.format("running", '"soup"'))
    await upsert(stranger, "status_board", entry.format("idle", "null"))
    cursor = await plain.execute("""
        SELECT status, detail, since IS NOT NULL AS began
        FROM assistant.board_events WHERE agent = 'heartbeat' ORDER BY id""")
    assert await cursor.fetchall() == [
        ("running", "recipe", True),
        ("running", "soup", False),
        ("idle", None, True),
    ]


@pytest.mark.parametrize("board", ["null", "[]", "7", '{"a": 1, "b": {"status": 5}}', "{}"])
async def test_a_board_of_any_shape_can_be_written(
    kv: KeyValues, plain: AsyncConnection, board: str
) -> None:
    await upsert(plain, "status_board", board)
    await upsert(plain, "status_board", '{"a": {"status": "idle", "detail": null}}')
    await upsert(plain, "status_board", board)
    assert await kv.get("status_board") == json.loads(board)
