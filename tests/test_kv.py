"""The key-value store as a library: values, paths into them, expiry and lists of keys."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from psycopg import AsyncConnection

from assistant_cli.errors import BadDataError, ConflictError, NotFoundError
from assistant_cli.store.database import Database
from assistant_cli.store.kv import KeyValues

from .hosting import rows
from .stored_keys import expire, upsert

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
