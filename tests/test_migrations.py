"""The schema: numbered steps, one script for readers, and databases that hold something already."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest

from assistant_cli.store.database import Database
from assistant_cli.store.kv import KeyValues
from assistant_cli.store.migrations import LATEST_VERSION, list_migrations, migrate

from .conftest import CommandLine
from .test_database_urls_and_logins import on

INIT_SQL = Path(__file__).parent.parent / "infra" / "init.sql"

# Everything a migration can make, as text that two databases can be compared by.
_DESCRIBE = """
SELECT 'column', attrelid::regclass::text, attname, attnum::text, format_type(atttypid, atttypmod),
    concat_ws(' ', pg_get_expr(adbin, adrelid), attidentity,
        CASE WHEN attnotnull THEN 'not null' END)
FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
WHERE attnum > 0 AND attrelid IN (SELECT oid FROM relation)
UNION ALL SELECT 'relation', oid::regclass::text, relkind::text, relpersistence::text,
    reloptions::text, CASE WHEN relkind = 'v' THEN pg_get_viewdef(oid)
        WHEN relkind = 'i' THEN pg_get_indexdef(oid) END
FROM relation
UNION ALL SELECT 'constraint', conrelid::regclass::text, conname,
    pg_get_constraintdef(oid), NULL, NULL
FROM pg_constraint WHERE conrelid IN (SELECT oid FROM relation)
UNION ALL SELECT 'function', oid::regprocedure::text, pg_get_functiondef(oid), proacl::text,
    NULL, NULL
FROM pg_proc WHERE pronamespace = 'assistant'::regnamespace
UNION ALL SELECT 'trigger', tgrelid::regclass::text, pg_get_triggerdef(oid), tgenabled::text,
    NULL, NULL
FROM pg_trigger WHERE NOT tgisinternal
UNION ALL SELECT 'version', version::text, name, NULL, NULL, NULL FROM assistant.migrations
ORDER BY 1, 2, 3, 4, 5, 6
"""
_RELATIONS = """
WITH relation AS (
    SELECT * FROM pg_class WHERE relnamespace IN ('public'::regnamespace, 'assistant'::regnamespace)
)
"""


def _run_init_sql(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(INIT_SQL.read_bytes())


def _describe(dsn: str) -> list[tuple[object, ...]]:
    with psycopg.connect(dsn) as connection:
        return connection.execute((_RELATIONS + _DESCRIBE).encode()).fetchall()


def test_init_sql_and_the_migrations_make_the_same_schema(dsn: str, empty_dsn: str) -> None:
    _run_init_sql(empty_dsn)
    assert _describe(empty_dsn) == _describe(dsn)


def test_init_sql_can_run_again(dsn: str) -> None:
    before = _describe(dsn)
    _run_init_sql(dsn)
    assert _describe(dsn) == before


def test_init_sql_leaves_an_older_or_a_newer_database_alone(dsn: str) -> None:
    for change in (
        f"DELETE FROM assistant.migrations WHERE version = {LATEST_VERSION}",
        f"INSERT INTO assistant.migrations VALUES ({LATEST_VERSION + 1}, 'future')",
    ):
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(change.encode())
        before = _describe(dsn)
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="at version"):
            _run_init_sql(dsn)
        assert _describe(dsn) == before


def test_a_plain_kv_table_is_adopted_with_its_values(empty_dsn: str) -> None:
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE kv (key TEXT PRIMARY KEY, value JSONB NOT NULL)")
        connection.execute("""INSERT INTO kv VALUES ('a', '{"x": 1.10}'), ('b', 'null')""")
        connection.execute("CREATE TABLE messages (id serial, content text)")
        connection.execute("CREATE TABLE sessions (id serial)")
        connection.execute("INSERT INTO messages (content) VALUES ('mine')")

    async def adopt() -> tuple[list[str], list[int]]:
        database = Database(empty_dsn)
        await migrate(database)
        entries = await KeyValues(database).list_entries()
        await database.close()
        return [entry.text for entry in entries], [entry.revision for entry in entries]

    texts, revisions = asyncio.run(adopt())
    assert texts == ['{"x": 1.10}', "null"]
    assert 0 < revisions[0] != revisions[1]
    with psycopg.connect(empty_dsn) as connection:
        assert connection.execute("SELECT content FROM public.messages").fetchall() == [("mine",)]


@pytest.mark.parametrize("means", ["migrate", "init.sql"])
def test_the_revisions_of_a_table_that_was_ours_before_go_on(dsn: str, means: str) -> None:
    async def write() -> int:
        database = Database(dsn)
        await migrate(database)
        revision = await KeyValues(database).set("a", 1)
        await database.close()
        return revision

    before = [asyncio.run(write()) for _ in range(3)][-1]
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("DROP SCHEMA assistant CASCADE")
    if means == "init.sql":
        _run_init_sql(dsn)
    assert asyncio.run(write()) > before


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ("kv (key text PRIMARY KEY, value text)", '"value" is not jsonb'),
        ("kv (key text, value jsonb)", '"key" is not unique'),
        ("kv (name text PRIMARY KEY, value jsonb)", '"key" is not unique'),
        ("kv (key text PRIMARY KEY, value jsonb, owner text NOT NULL)", '"owner" must be given'),
        ("kv (key uuid PRIMARY KEY, value jsonb)", "what is here already does not fit"),
        ("kv (key text PRIMARY KEY, value jsonb, revision date)", "what is here already does not"),
    ],
)
def test_a_kv_table_of_another_kind_is_refused_and_left_alone(
    empty_dsn: str, environment: dict[str, str], found: LiteralString, reason: str
) -> None:
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE " + found)
        done = on(environment, empty_dsn)("db", "migrate")
        assert (done.code, done.out, len(done.err.splitlines())) == (78, "", 1)
        assert reason in done.err
        row = connection.execute("SELECT to_regnamespace('assistant')").fetchone()
        assert row == (None,)
    if "here already" not in reason:
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match=reason):
            _run_init_sql(empty_dsn)


def test_a_database_that_does_not_hold_all_text_is_refused_and_left_alone(
    ascii_dsn: str, environment: dict[str, str]
) -> None:
    done = on(environment, ascii_dsn)("db", "migrate")
    assert (done.code, done.out, len(done.err.splitlines())) == (78, "", 1)
    assert "this database is in SQL_ASCII" in done.err
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="SQL_ASCII"):
        _run_init_sql(ascii_dsn)
    with psycopg.connect(ascii_dsn) as connection:
        row = connection.execute("SELECT to_regnamespace('assistant')").fetchone()
        assert row == (None,)


def test_migrating_at_once_from_many_processes_is_done_once(empty_dsn: str) -> None:
    async def migrate_many() -> list[int]:
        databases = [Database(empty_dsn) for _ in range(8)]
        taken = await asyncio.gather(*(migrate(database) for database in databases))
        for database in databases:
            await database.close()
        return [len(steps) for steps in taken]

    assert sum(asyncio.run(migrate_many())) == len(list(list_migrations()))


@pytest.mark.parametrize(
    "arguments", [["kv", "get", "a"], ["kv", "set", "a", "1"], ["status"], ["send", "hi"]]
)
def test_commands_do_not_migrate_but_say_how(
    empty_dsn: str, environment: dict[str, str], arguments: list[str]
) -> None:
    assistant = CommandLine({**environment, "ASSISTANT_DATABASE_URL": empty_dsn})
    done = assistant(*arguments)
    assert (done.code, done.out) == (78, "")
    assert "run `assistant db migrate`" in done.err
    with psycopg.connect(empty_dsn) as connection:
        assert connection.execute("SELECT to_regclass('public.kv')").fetchone() == (None,)


def test_db_migrate_sets_a_database_up(empty_dsn: str, environment: dict[str, str]) -> None:
    assistant = CommandLine({**environment, "ASSISTANT_DATABASE_URL": empty_dsn})
    assert assistant("db", "migrate").code == 0
    assert assistant("db", "migrate").code == 0
    assert assistant("kv", "set", "a", "1").code == 0


@pytest.mark.parametrize("arguments", [["kv", "get", "a"], ["run"], ["db", "migrate"], ["status"]])
def test_a_database_newer_than_the_program_is_refused(
    dsn: str, assistant: CommandLine, arguments: list[str]
) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO assistant.migrations VALUES (%s, 'future')", (LATEST_VERSION + 1,)
        )
    done = assistant(*arguments)
    assert (done.code, done.out) == (78, "")
    assert "newer than this program" in done.err
