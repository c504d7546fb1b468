"""Writes of keys: revisions, merges and numbers, and that nothing is lost among many writers."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from psycopg import AsyncConnection

from assistant_cli.errors import BadDataError, ConflictError, NotFoundError
from assistant_cli.store.database import Database
from assistant_cli.store.kv import KeyValues

from .conftest import until_locked
from .hosting import rows
from .stored_keys import expire


async def revision_of(kv: KeyValues, key: str) -> int:
    entry = await kv.get_entry(key)
    assert entry is not None
    return entry.revision


# Writes


async def test_the_revision_grows_with_every_write_of_any_key(kv: KeyValues) -> None:
    revisions = [await kv.set(key, 1) for key in ("a", "b", "a", "b")]
    await kv.increment("a")
    revisions.append(await revision_of(kv, "a"))
    assert revisions == sorted(set(revisions))


async def test_create_only_writes_a_missing_key(kv: KeyValues) -> None:
    await kv.set("k", 1, create=True)
    with pytest.raises(ConflictError, match="exists already"):
        await kv.set("k", 2, create=True)
    assert await kv.get("k") == 1


async def test_a_key_deleted_under_a_write_comes_back_with_a_larger_revision(
    kv: KeyValues, plain: AsyncConnection, dsn: str
) -> None:
    await kv.set("k", 1)
    async with plain.transaction():
        await plain.execute("SELECT FROM kv WHERE key = 'k' FOR UPDATE")
        deleting = asyncio.create_task(kv.delete("k"))
        await until_locked(dsn, 1)
        writing = asyncio.create_task(kv.set("k", 3))
        await until_locked(dsn, 2)
        update = "UPDATE kv SET value = '2' WHERE key = 'k' RETURNING revision"
        row = await (await plain.execute(update)).fetchone()
    await deleting
    assert row is not None
    assert await writing > row[0]


async def test_keys_are_deleted_in_the_order_in_which_others_lock_them(
    kv: KeyValues, plain: AsyncConnection, dsn: str
) -> None:
    for key in ("b", "a", "B"):
        await kv.set(key, 1)
    async with plain.transaction():
        await plain.execute("UPDATE kv SET value = '2' WHERE key = 'B'")
        deleting = asyncio.create_task(kv.delete("b", "a", "B"))
        await until_locked(dsn, 1)
        for key in ("a", "b"):
            await plain.execute("UPDATE kv SET value = '2' WHERE key = %s", (key,))
    await deleting
    assert await kv.list_keys() == []


async def test_a_write_at_a_revision_loses_once_it_moved(kv: KeyValues) -> None:
    first = await kv.set("k", 1)
    second = await kv.set("k", 2, if_revision=first)
    with pytest.raises(ConflictError, match=f"revision {first}"):
        await kv.set("k", 3, if_revision=first)
    assert (await kv.get("k"), await revision_of(kv, "k")) == (2, second)
    with pytest.raises(ConflictError):
        await kv.set("missing", 1, if_revision=second)


async def test_revision_zero_means_that_the_key_is_missing(kv: KeyValues) -> None:
    await kv.set("k", 1, if_revision=0)
    with pytest.raises(ConflictError):
        await kv.set("k", 2, if_revision=0)
    assert await kv.get("k") == 1


async def test_of_many_writers_at_a_revision_exactly_one_wins(dsn: str, kv: KeyValues) -> None:
    revision = await kv.set("k", "start")
    databases = [Database(dsn) for _ in range(8)]
    writes = [
        database.kv.set("k", writer, if_revision=revision)
        for writer, database in enumerate(databases * 4)
    ]
    outcomes = await asyncio.gather(*writes, return_exceptions=True)
    for database in databases:
        await database.close()
    winners = [n for n, outcome in enumerate(outcomes) if isinstance(outcome, int)]
    losers = [outcome for outcome in outcomes if isinstance(outcome, ConflictError)]
    assert (len(winners), len(losers)) == (1, 31)
    assert await kv.get("k") == winners[0]


async def test_of_many_creators_exactly_one_wins(kv: KeyValues) -> None:
    writes = [kv.set("k", writer, create=True) for writer in range(16)]
    outcomes = await asyncio.gather(*writes, return_exceptions=True)
    winners = [n for n, outcome in enumerate(outcomes) if isinstance(outcome, int)]
    assert len(winners) == 1
    assert await kv.get("k") == winners[0]


async def test_delete_takes_all_or_none(kv: KeyValues) -> None:
    for key in "abc":
        await kv.set(key, 1)
    with pytest.raises(NotFoundError, match="'x', 'y'; nothing was removed"):
        await kv.delete("a", "y", "b", "x")
    assert await kv.list_keys() == ["a", "b", "c"]
    await kv.delete("a", "c", "a")
    assert await kv.list_keys() == ["b"]


# JSON Merge Patch: the examples of RFC 7396, appendix A


@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        ('{"a":"b"}', '{"a":"c"}', '{"a":"c"}'),
        ('{"a":"b"}', '{"b":"c"}', '{"a":"b","b":"c"}'),
        ('{"a":"b"}', '{"a":null}', "{}"),
        ('{"a":"b","b":"c"}', '{"a":null}', '{"b":"c"}'),
        ('{"a":["b"]}', '{"a":"c"}', '{"a":"c"}'),
        ('{"a":"c"}', '{"a":["b"]}', '{"a":["b"]}'),
        ('{"a":{"b":"c"}}', '{"a":{"b":"d","c":null}}', '{"a":{"b":"d"}}'),
        ('{"a":[{"b":"c"}]}', '{"a":[1]}', '{"a":[1]}'),
        ('["a","b"]', '["c","d"]', '["c","d"]'),
        ('{"a":"b"}', '["c"]', '["c"]'),
        ('{"a":"foo"}', "null", "null"),
        ('{"a":"foo"}', '"bar"', '"bar"'),
        ('{"e":null}', '{"a":1}', '{"e":null,"a":1}'),
        ("[1,2]", '{"a":"b","c":null}', '{"a":"b"}'),
        ("{}", '{"a":{"bb":{"ccc":null}}}', '{"a":{"bb":{}}}'),
    ],
)
async def test_merge_follows_the_rfc(kv: KeyValues, target: str, patch: str, result: str) -> None:
    revision = await kv.set_text("k", target)
    await kv.set_text("k", patch, merge=True)
    assert await kv.get("k") == json.loads(result)
    await kv.set_text("again", target)
    await kv.set_text("again", patch, merge=True, if_revision=await revision_of(kv, "again"))
    assert await kv.get("again") == json.loads(result)
    with pytest.raises(ConflictError):
        await kv.set_text("k", patch, merge=True, if_revision=revision)


@pytest.mark.parametrize("how", [{}, {"if_revision": 0}, {"create": True}])
async def test_a_missing_key_is_merged_into_as_an_empty_object(
    kv: KeyValues, plain: AsyncConnection, how: dict[str, Any]
) -> None:
    patch = '{"a": {"b": null}, "c": 1.10, "d": null}'
    await kv.set_text("k", patch, merge=True, **how)
    assert await kv.get_text("k") == ['{"a": {}, "c": 1.10}']
    await kv.set("expired", {"old": True})
    await expire(plain, "expired")
    await kv.set_text("expired", patch, merge=True, **how)
    assert await kv.get_text("expired") == ['{"a": {}, "c": 1.10}']


async def test_merges_at_once_lose_nothing(kv: KeyValues) -> None:
    await asyncio.gather(*(kv.set("k", {str(n): n}, merge=True) for n in range(40)))
    assert await kv.get("k") == {str(n): n for n in range(40)}


async def test_a_merge_that_would_make_a_value_too_large_changes_nothing(kv: KeyValues) -> None:
    await kv.set("k", {"a": "x" * 600_000})
    revision = await revision_of(kv, "k")
    for how in ({}, {"if_revision": revision}):
        with pytest.raises(BadDataError, match="at most 1,000,000 bytes"):
            await kv.set("k", {"b": "x" * 600_000}, merge=True, **how)  # type: ignore[arg-type]
    assert await revision_of(kv, "k") == revision


# Numbers


async def test_increments_are_exact(kv: KeyValues) -> None:
    assert await kv.increment("k") == "1"
    assert await kv.increment("k", "-3.10") == "-2.10"
    assert await kv.increment("k", "0.0000000000000000000000000001") == (
        "-2.0999999999999999999999999999"
    )
    await kv.set_text("big", "9" * 100)
    assert await kv.increment("big", 1) == "1" + "0" * 100


async def test_increments_from_many_writers_lose_nothing(dsn: str, kv: KeyValues) -> None:
    async def add(count: int) -> None:
        database = Database(dsn)
        for _ in range(count):
            await database.kv.increment("k", "0.5")
        await database.close()

    await asyncio.gather(*(add(25) for _ in range(8)))
    assert await kv.get_text("k") == ["100.0"]


@pytest.mark.parametrize("text", ['"1"', "null", "true", "[1]", "{}"])
async def test_what_is_no_number_is_not_incremented(kv: KeyValues, text: str) -> None:
    await kv.set_text("k", text)
    with pytest.raises(BadDataError, match="not a number"):
        await kv.increment("k")
    assert await kv.get_text("k") == [text]


@pytest.mark.parametrize("by", ["", "x", "1e3", "NaN", "Infinity", "1.", " 1", "1\n", "٣", "--1"])
async def test_what_is_no_number_is_not_added(kv: KeyValues, by: str) -> None:
    with pytest.raises(BadDataError, match="decimal number"):
        await kv.increment("k", by)
    assert await kv.get_entry("k") is None


# Many at once


async def test_keys_set_at_once_share_commits_and_have_revisions_of_their_own(
    database: Database,
) -> None:
    revisions = await asyncio.gather(*(database.kv.set(f"k/{n}", n) for n in range(50)))
    stored = await rows(database, "SELECT revision FROM kv ORDER BY (value #>> '{}')::int")
    assert stored == list(revisions)
    assert await rows(database, "SELECT count(DISTINCT xmin::text) FROM kv") == [1]


async def test_one_key_set_several_times_at_once_ends_with_the_last_value(
    database: Database,
) -> None:
    revisions = await asyncio.gather(*(database.kv.set("k", n) for n in range(5)))
    assert list(revisions) == sorted(set(revisions))
    entry = await database.kv.get_entry("k")
    assert entry is not None
    assert (entry.value, entry.revision) == (4, revisions[-1])


async def test_large_values_set_at_once_come_in_statements_of_a_bounded_size(
    kv: KeyValues, database: Database
) -> None:
    await asyncio.gather(*(kv.set(f"k{number}", "x" * 900_000) for number in range(9)))
    assert await rows(database, "SELECT count(DISTINCT xmin::text) FROM kv") == [3]


async def test_a_lifetime_that_is_none_fails_alone(kv: KeyValues) -> None:
    seconds: Any = 60
    writes = kv.set("a", 1), kv.set("b", 1, ttl=seconds)
    stored, refused = await asyncio.gather(*writes, return_exceptions=True)
    assert isinstance(stored, int)
    assert isinstance(refused, AttributeError)


async def test_a_key_that_a_trigger_leaves_out_fails_alone(
    kv: KeyValues, database: Database
) -> None:
    await rows(
        database,
        "CREATE FUNCTION skip() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RETURN CASE WHEN NEW.key <> 'b' THEN NEW END; END $$",
    )
    await rows(
        database, "CREATE TRIGGER skip BEFORE INSERT ON kv FOR EACH ROW EXECUTE FUNCTION skip()"
    )
    writes = kv.set("a", 1), kv.set("b", 1)
    stored, refused = await asyncio.gather(*writes, return_exceptions=True)
    assert isinstance(stored, int)
    assert isinstance(refused, ConflictError)


async def test_a_value_the_database_refuses_fails_alone(database: Database) -> None:
    await rows(database, "ALTER TABLE kv ADD CHECK (key <> 'refused')")
    keys = ["first", "a", "refused", "b"]
    results = await asyncio.gather(
        *(database.kv.set(key, 1) for key in keys), return_exceptions=True
    )
    assert [isinstance(result, ConflictError) for result in results] == [False, False, True, False]
    assert await database.kv.list_keys() == ["a", "b", "first"]
