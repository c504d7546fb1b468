"""The key-value store as a library, and plain SQL as its equal."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import AsyncConnection, sql

from assistant_cli.errors import BadDataError, ConflictError, NotFoundError
from assistant_cli.store import follow
from assistant_cli.store.database import Database
from assistant_cli.store.kv import KeyValues
from assistant_cli.store.watch import Entry

from .conftest import eventually, until_locked
from .hosting import rows, until

UPSERT = "INSERT INTO kv (key, value) VALUES (%s, %s) ON CONFLICT (key) DO UPDATE SET value = %s"

HOSTILE = [
    "",
    "\\",
    '"',
    "\\.",
    "\x01\x02\x07\x1b[2J\x7f\x85",
    "line\nline\r\nline\ttab",
    "[bold]no markup[/bold]",
    "\u202eright to left\u2028\ufeff",
    "\U0001f600 \ud7ff \ue000 \U0010ffff",
    "'; DROP TABLE kv; --",
    "%s %(key)s {} $1",
]


@pytest.fixture
def kv(database: Database) -> KeyValues:
    return database.kv


@pytest.fixture
async def plain(dsn: str) -> AsyncIterator[AsyncConnection]:
    """Another program: a connection that knows nothing of the library."""
    async with await AsyncConnection.connect(dsn, autocommit=True) as connection:
        yield connection


async def upsert(connection: AsyncConnection, key: str, text: str) -> None:
    await connection.execute(UPSERT, (key, text, text))


async def expire(connection: AsyncConnection, key: str) -> None:
    moved = "UPDATE kv SET expires_at = now() - interval '1 second' WHERE key = %s"
    assert (await connection.execute(moved, (key,))).rowcount == 1


async def revision_of(kv: KeyValues, key: str) -> int:
    entry = await kv.get_entry(key)
    assert entry is not None
    return entry.revision


def waits_for_a_lock(dsn: str) -> bool:
    waiting = """
        SELECT FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event_type = 'Lock'"""
    with psycopg.connect(dsn) as connection:
        return connection.execute(waiting).rowcount > 0


async def exported(kv: KeyValues, prefix: str = "") -> bytes:
    return b"".join([block async for block in kv.export(prefix)])


# Values


@pytest.mark.parametrize(
    "value", [None, True, 0, -1.5, "", "text", [], {}, {"a": [1, {"b": None}]}]
)
async def test_a_value_comes_out_as_it_went_in(kv: KeyValues, value: Any) -> None:
    await kv.set("k", value)
    assert await kv.get("k") == value


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("1.10", "1.10"),
        ("1e400", "1" + "0" * 400),
        ("1.5e-7", "0.00000015"),
        ("9" * 100, "9" * 100),
        ("-0." + "3" * 100, "-0." + "3" * 100),
        ('{"a": [1.10, 100000000000000000000.010]}', '{"a": [1.10, 100000000000000000000.010]}'),
    ],
)
async def test_numbers_keep_every_digit(kv: KeyValues, text: str, stored: str) -> None:
    await kv.set_text("k", text)
    assert await kv.get_text("k") == [stored]


@pytest.mark.parametrize("text", HOSTILE)
async def test_any_text_is_only_text(kv: KeyValues, text: str) -> None:
    await kv.set("k", {text: text})
    assert await kv.get("k") == {text: text}


async def test_a_stored_null_is_not_a_missing_key(kv: KeyValues) -> None:
    await kv.set("k", None)
    entry = await kv.get_entry("k")
    assert entry is not None
    assert entry.text == "null"
    assert await kv.get_entry("missing") is None


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        {1: "a"},
        {"a"},
        "\ud800",
        "\x00",
        {"a\x00": 1},
        pytest.param(10**5000, id="huge"),
    ],
)
async def test_what_json_cannot_say_is_refused(kv: KeyValues, value: Any) -> None:
    with pytest.raises(BadDataError):
        await kv.set("k", value)
    assert await kv.get_entry("k") is None


@pytest.mark.parametrize(
    "key", ["", "a\nb", "tab\t", "\x7f", "\x85", "\ud800", "x" * 513, "é" * 257, "nul\x00"]
)
async def test_a_bad_key_is_refused(kv: KeyValues, key: str) -> None:
    for refused in (kv.get(key), kv.set(key, 1), kv.delete(key), kv.increment(key)):
        with pytest.raises(BadDataError, match="key"):
            await refused


@pytest.mark.parametrize("key", ["x" * 512, "é" * 256, "a b", " ", "-k", "\U0010ffff", "a/b.c[0]"])
async def test_any_other_key_is_a_key(kv: KeyValues, key: str) -> None:
    await kv.set(key, 1)
    assert await kv.list_keys() == [key]
    await kv.delete(key)
    assert await kv.list_keys() == []


async def test_a_value_that_python_cannot_hold_is_still_readable_as_text(
    kv: KeyValues, plain: AsyncConnection
) -> None:
    deep = "[" * 5000 + "]" * 5000
    await upsert(plain, "huge", "1e5000")
    await upsert(plain, "deep", deep)
    assert await kv.get_text("huge") == ["1" + "0" * 5000]
    assert await kv.get_text("deep") == [deep]
    with pytest.raises(BadDataError, match="read it as text"):
        await kv.get("huge")


# Paths

DOCUMENT = """{
    "heartbeat": {"status": "running", "detail": null},
    "my-agent": {"last.seen": 1.10, "x y": [10, 20, {"a-b": true}]},
    "items": [{"name": "a", "price": 1}, {"name": "b", "price": 3}]
}"""


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("heartbeat.status", ['"running"']),
        ("$.heartbeat.status", ['"running"']),
        ("heartbeat.detail", ["null"]),
        ('my-agent."last.seen"', ["1.10"]),
        ('$."my-agent"."last.seen"', ["1.10"]),
        ('my-agent."x y"[2].a-b', ["true"]),
        ('my-agent."x y"[0 to 1]', ["10", "20"]),
        ('my-agent."x y".size()', ["3"]),
        ("my-agent.type()", ['"object"']),
        ("items[0].name", ['"a"']),
        ("items[last].name", ['"b"']),
        ("items[*].price", ["1", "3"]),
        ("items.name", ['"a"', '"b"']),
        ("items[*] ? (@.price > 2).name", ['"b"']),
        ("$.items[*] ? (@.price > 2).name", ['"b"']),
        ("strict $.items[0].name", ['"a"']),
        ("lax $.items.name", ['"a"', '"b"']),
        ("heartbeat.*", ["null", '"running"']),
        ("*.status", ['"running"']),
        ("**.status", ['"running"']),
        ("items[0].price + 1", ["2"]),
        ("$", [None]),
        ("missing", []),
        ("heartbeat.status.deeper", []),
        ("strict $.items.name", []),
        ("strict $.missing", []),
        ("items[7]", []),
    ],
)
async def test_a_path_finds(kv: KeyValues, path: str, found: list[str | None]) -> None:
    await kv.set_text("k", DOCUMENT)
    whole = await kv.get_text("k")
    assert await kv.get_text("k", path) == [text or whole[0] for text in found]


async def test_a_path_may_begin_with_an_index(kv: KeyValues) -> None:
    await kv.set_text("k", '[{"a-b": 1}, {"a-b": 2}]')
    assert await kv.get_text("k", "[1].a-b") == ["2"]
    assert await kv.get_text("k", "[*].a-b") == ["1", "2"]


@pytest.mark.parametrize("path", ["", "a..b", 'a."b', "$.a ?", "items[", "$[", "$nope", "\ud800"])
async def test_a_bad_path_is_refused(kv: KeyValues, path: str) -> None:
    await kv.set("k", {"a": 1})
    with pytest.raises(BadDataError):
        await kv.get_text("k", path)


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


# Expiry


async def test_an_expired_key_counts_as_missing_everywhere(
    kv: KeyValues, plain: AsyncConnection
) -> None:
    revision = await kv.set("k", {"a": 1}, ttl=timedelta(minutes=10))
    entry = await kv.get_entry("k")
    assert entry is not None
    assert entry.expires_at is not None
    assert timedelta(minutes=9) < entry.expires_at - entry.updated_at <= timedelta(minutes=10)
    await expire(plain, "k")
    assert await kv.get("k") is None
    assert await kv.get_text("k", "a") == await kv.get_text("k", pretty=True) == []
    assert await kv.list_keys() == []
    assert await kv.list_entries() == []
    assert await exported(kv) == b""
    with pytest.raises(NotFoundError):
        await kv.delete("k")
    with pytest.raises(ConflictError):
        await kv.set("k", 2, if_revision=revision + 1)
    await kv.set("k", "created", create=True)
    assert await kv.get("k") == "created"


async def test_a_write_ends_the_expiry_and_a_merge_keeps_it(kv: KeyValues) -> None:
    hour = timedelta(hours=1)
    await kv.set("k", {"a": 1}, ttl=hour)
    before = await kv.get_entry("k")
    await kv.set("k", {"b": 2}, merge=True)
    merged = await kv.get_entry("k")
    assert before is not None
    assert merged is not None
    assert merged.expires_at == before.expires_at is not None
    await kv.set("k", {"c": 3}, merge=True, if_revision=merged.revision)
    entry = await kv.get_entry("k")
    assert entry is not None
    assert entry.expires_at == before.expires_at
    await kv.set("k", 1)
    entry = await kv.get_entry("k")
    assert entry is not None
    assert entry.expires_at is None


async def test_an_expired_counter_begins_anew(kv: KeyValues, plain: AsyncConnection) -> None:
    await kv.set("k", "not a number", ttl=timedelta(hours=1))
    await expire(plain, "k")
    assert await kv.increment("k", 5) == "5"
    assert await kv.increment("k", 5) == "10"


# Lists


async def test_keys_are_listed_in_byte_order(kv: KeyValues) -> None:
    keys = ["a", "B", "ä", "_", "a b", "a.b", "a/b", "A", "\ue000", "\U00010000", "\ud7ff", "z"]
    for key in keys:
        await kv.set(key, 1)
    assert await kv.list_keys() == sorted(keys, key=str.encode)
    assert [entry.key for entry in await kv.list_entries()] == sorted(keys, key=str.encode)
    assert await kv.list_keys(limit=3) == sorted(keys, key=str.encode)[:3]


@pytest.mark.parametrize(
    ("prefix", "inside", "outside"),
    [
        ("a/", ["a/", "a/b", "a/\U0010ffff"], ["a", "a0", "A/", "b/"]),
        ("\ud7ff", ["\ud7ff", "\ud7ffa", "\ud7ff\U0010ffff"], ["\ue000", "\ud7fe", "\U00010000"]),
        ("a\ud7ff", ["a\ud7ff", "a\ud7ff\ue000"], ["a\ue000", "a"]),
        ("\U0010ffff", ["\U0010ffff", "\U0010ffff\U0010ffffa"], ["\U0010fffe", "\uffff"]),
        ("a\U0010ffff", ["a\U0010ffff", "a\U0010ffffb"], ["b", "a\U0010fffe", "a"]),
        ("50%_", ["50%_", "50%_off"], ["50", "50xx", "50%a"]),
        ("\\", ["\\", "\\d"], ["d", "]"]),
    ],
)
async def test_a_prefix_means_the_same_everywhere(
    kv: KeyValues, prefix: str, inside: list[str], outside: list[str]
) -> None:
    for key in [*inside, *outside]:
        await kv.set(key, 1)
    expected = sorted(inside, key=str.encode)
    assert await kv.list_keys(prefix) == expected
    assert [entry.key for entry in await kv.list_entries(prefix)] == expected
    lines = (await exported(kv, prefix)).decode().splitlines()
    assert [json.loads(line)["key"] for line in lines] == expected
    watched = kv.watch(prefix=prefix)
    assert [(await anext(watched)).key for _ in inside] == expected
    await watched.aclose()


async def test_a_prefix_that_is_not_unicode_is_refused(kv: KeyValues) -> None:
    for refused in (kv.list_keys("\udcff"), kv.list_entries("\udcff")):
        with pytest.raises(BadDataError, match="prefix is not valid UTF-8"):
            await refused
    for begin in (kv.export, lambda prefix: kv.watch(prefix=prefix)):
        with pytest.raises(BadDataError, match="prefix is not valid UTF-8"):
            begin("\udcff")


# Export and import


async def test_what_is_exported_can_be_imported(kv: KeyValues) -> None:
    for number, text in enumerate(HOSTILE):
        await kv.set(f"{number:02} {text if text.isprintable() else ''}", {text: [text, None]})
    for number, text in enumerate(["1.10", "1e400", "9" * 5000, "null", "[]", '""', "[[1.0]]"]):
        await kv.set_text(f"number {number}", text)
    await kv.set("large", "x" * 999_998)
    before = [(entry.key, entry.text) for entry in await kv.list_entries()]
    lines = (await exported(kv)).decode().split("\n")
    assert lines.pop() == ""
    keys = [json.loads(line, parse_int=str)["key"] for line in lines]
    assert keys == [key for key, _ in before]
    await kv.delete(*(key for key, _ in before))
    assert await kv.import_lines(lines, on_conflict="fail") == len(before)
    assert [(entry.key, entry.text) for entry in await kv.list_entries()] == before


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not JSON"),
        ("[]", "not an object like"),
        ('{"key": "k"}', "not an object like"),
        ('{"key": "k", "value": 1, "more": 2}', "not an object like"),
        ('{"key": 1, "value": 1}', "the key is not text"),
        ('{"key": "", "value": 1}', "1 to 512 bytes"),
        ('{"key": "a\\nb", "value": 1}', "control characters"),
        ('{"key": "k", "key": "l", "value": 1}', "same key twice"),
        ('{"key": "k", "value": NaN}', "NaN"),
        ('{"key": "k", "value": "\\u0000"}', "u0000"),
        ('{"key": "k", "value": "\\ud800"}', "surrogate"),
        ('{"key": "k", "value": ' + "[" * 101 + "]" * 101 + "}", "100 deep"),
        pytest.param(
            '{"key": "k", "value": "' + "x" * 1_010_000 + '"}',
            "at most 1,000,000 bytes",
            id="large",
        ),
        ('{"key": "k", "value": 1} {"key": "l", "value": 1}', "not JSON"),
        ("\\.", "not JSON"),
    ],
)
async def test_a_bad_line_is_named_and_nothing_is_imported(
    kv: KeyValues, line: str, reason: str
) -> None:
    good = ['{"key": "good", "value": 1}\n', "\n"]
    with pytest.raises(BadDataError, match=f"^line 3: .*{reason}.*; nothing was imported$"):
        await kv.import_lines([*good, line, *good])
    assert await kv.list_keys() == []


async def test_lines_may_be_blank_or_end_as_on_other_systems(kv: KeyValues) -> None:
    lines = ["\n", '{"key": "a",\r"value": 1}\r\n', "  \n", '{"key":\n"b", "value": 2}', "\r\n"]
    assert await kv.import_lines(lines) == 2
    assert await kv.import_lines([]) == 0
    assert [await kv.get("a"), await kv.get("b")] == [1, 2]


def lines_of(**values: Any) -> list[str]:
    return [json.dumps({"key": key, "value": value}) for key, value in values.items()]


async def test_import_replaces_what_exists_unless_told_otherwise(
    kv: KeyValues, plain: AsyncConnection
) -> None:
    await kv.set("a", "old")
    await kv.set("expired", "old")
    await kv.set("short-lived", "old", ttl=timedelta(hours=1))
    await expire(plain, "expired")
    lines = lines_of(a="new", b="new", expired="new")

    with pytest.raises(ConflictError, match="'a' exists already; nothing was imported"):
        await kv.import_lines(lines, on_conflict="fail")
    assert await kv.list_keys() == ["a", "short-lived"]

    assert await kv.import_lines(lines, on_conflict="skip") == 2
    assert [await kv.get(key) for key in ("a", "b", "expired")] == ["old", "new", "new"]

    assert await kv.import_lines([*lines, *lines_of(**{"short-lived": "new"})]) == 4
    assert await kv.get("a") == "new"
    entry = await kv.get_entry("short-lived")
    assert entry is not None
    assert (entry.value, entry.expires_at) == ("new", None)


async def test_a_key_that_comes_twice(kv: KeyValues) -> None:
    lines = [*lines_of(a=1), *lines_of(a=2, b=1)]
    with pytest.raises(ConflictError, match="'a' comes twice; nothing was imported"):
        await kv.import_lines(lines, on_conflict="fail")
    assert await kv.list_keys() == []
    assert await kv.import_lines(lines, on_conflict="skip") == 2
    assert await kv.get("a") == 1
    assert await kv.import_lines(lines) == 2
    assert await kv.get("a") == 2


async def test_a_dry_run_checks_everything_and_writes_nothing(kv: KeyValues) -> None:
    revision = await kv.set("a", "old")
    lines = lines_of(a="new", b="new")
    assert await kv.import_lines(lines, dry_run=True) == 2
    assert await kv.import_lines(lines, on_conflict="skip", dry_run=True) == 1
    with pytest.raises(ConflictError):
        await kv.import_lines(lines, on_conflict="fail", dry_run=True)
    with pytest.raises(BadDataError, match="line 3"):
        await kv.import_lines([*lines, "{"], dry_run=True)
    assert await kv.list_keys() == ["a"]
    assert await revision_of(kv, "a") == revision


async def test_a_key_written_during_an_import_that_must_not_replace_fails_it(
    kv: KeyValues, plain: AsyncConnection
) -> None:
    async with await AsyncConnection.connect(plain.info.dsn) as other:
        await upsert(other, "a", '"theirs"')
        task = asyncio.create_task(kv.import_lines(lines_of(a=1, b=1), on_conflict="fail"))
        await asyncio.to_thread(eventually, lambda: waits_for_a_lock(plain.info.dsn))
        await other.commit()
    with pytest.raises(ConflictError, match="nothing was imported"):
        await task
    assert [await kv.get("a"), await kv.get("b")] == ["theirs", None]


# Plain SQL


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


async def test_a_value_the_database_refuses_fails_alone(database: Database) -> None:
    await rows(database, "ALTER TABLE kv ADD CHECK (key <> 'refused')")
    keys = ["first", "a", "refused", "b"]
    results = await asyncio.gather(
        *(database.kv.set(key, 1) for key in keys), return_exceptions=True
    )
    assert [isinstance(result, ConflictError) for result in results] == [False, False, True, False]
    assert await database.kv.list_keys() == ["a", "b", "first"]


async def test_a_prefix_is_found_by_both_its_ends_however_often_it_is_asked_for(
    database: Database,
) -> None:
    await rows(
        database,
        "INSERT INTO kv (key, value) SELECT 'k/' || n, '1' FROM generate_series(1, 5000) n",
    )
    await rows(database, "ANALYZE kv")
    async with database.connection() as connection:
        await connection.execute("SET plan_cache_mode = force_generic_plan")
    for _ in range(6):  # psycopg prepares what is asked for again and again
        await database.kv.list_keys("k/1")
    plan = await rows(
        database,
        "EXPLAIN EXECUTE "
        + (await rows(database, "SELECT name FROM pg_prepared_statements"))[0]
        + "('k/1', 'k/2', NULL)",
    )
    assert any("Index Cond" in line and line.count("key") == 2 for line in plan), plan


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
