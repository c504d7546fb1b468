"""Export and import of keys as a library: all comes back as it was, or nothing is imported."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any

import pytest
from psycopg import AsyncConnection

from assistant_cli.errors import BadDataError, ConflictError
from assistant_cli.store.kv import KeyValues

from .conftest import until_locked
from .stored_keys import expire, upsert
from .test_kv import HOSTILE, exported
from .test_kv_writes import revision_of


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
        ('{"key": "k", "value": }\n', "not JSON: Expecting value at column 23"),
        ('{"key": "k", "value": 1\n', "not JSON: Expecting ',' delimiter at column 24"),
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
        await until_locked(plain.info.dsn, 1)
        await other.commit()
    with pytest.raises(ConflictError, match="nothing was imported"):
        await task
    assert [await kv.get("a"), await kv.get("b")] == ["theirs", None]
