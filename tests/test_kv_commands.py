"""`assistant kv rm`, `exists`, `incr` and `ls`: exit codes for answers, clean refusals."""

from __future__ import annotations

import json
import re
from typing import Any

import psycopg
import pytest

from .conftest import CommandLine, Finished
from .stored_keys import stored
from .terminals import run_on_terminal

UTC_TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


def put(sql: psycopg.Connection[Any], **values: str) -> None:
    for key, text in values.items():
        sql.execute("INSERT INTO kv (key, value) VALUES (%s, %s)", (key, text))


def expire(sql: psycopg.Connection[Any], key: str) -> None:
    sql.execute("UPDATE kv SET expires_at = now() - interval '1 s' WHERE key = %s", (key,))


def table(sql: psycopg.Connection[Any]) -> list[Any]:
    return sql.execute(
        "SELECT key, value::text, revision, expires_at FROM kv ORDER BY 1"
    ).fetchall()


def assert_refused(done: Finished, code: int) -> None:
    assert (done.code, done.out) == (code, "")
    assert re.fullmatch(r"assistant: [^\n]+\n", done.err)


# rm, exists, incr


def test_rm_removes_all_or_none(assistant: CommandLine, sql: psycopg.Connection[Any]) -> None:
    put(sql, a="1", b="1", c="1")
    before = table(sql)
    done = assistant("kv", "rm", "a", "missing", "b", "lost")
    assert_refused(done, 3)
    assert "'lost', 'missing'" in done.err
    assert table(sql) == before
    assert assistant("kv", "rm", "a", "b", "a") == Finished(0, "", "")
    assert stored(sql) == {"c": "1"}


def test_exists_answers_silently(assistant: CommandLine, sql: psycopg.Connection[Any]) -> None:
    put(sql, null="null")
    assert assistant("kv", "exists", "null") == Finished(0, "", "")
    assert assistant("kv", "exists", "nul") == Finished(3, "", "")
    assert_refused(assistant("kv", "exists", ""), 65)


@pytest.mark.parametrize(
    ("start", "by", "total"),
    [
        (None, [], "1"),
        (None, ["-5"], "-5"),
        ("12345678901234567890", [], "12345678901234567891"),
        ("0.1", ["0.2"], "0.3"),
        ("1.10", ["-0.10"], "1.00"),
        ("5", ["-7"], "-2"),
        ("1e2", ["0"], "100"),
    ],
)
def test_incr_adds_exactly_and_prints_the_sum(
    assistant: CommandLine,
    sql: psycopg.Connection[Any],
    start: str | None,
    by: list[str],
    total: str,
) -> None:
    if start is not None:
        put(sql, n=start)
    assert assistant("kv", "incr", "n", *by) == Finished(0, f"{total}\n", "")
    assert stored(sql) == {"n": total}


@pytest.mark.parametrize(
    ("start", "by"),
    [('"5"', "1"), ("null", "1"), ('{"a": 1}', "1"), ("1", "x"), ("1", ""), ("1", "NaN")],
)
def test_incr_of_what_is_no_number_changes_nothing(
    assistant: CommandLine, sql: psycopg.Connection[Any], start: str, by: str
) -> None:
    put(sql, n=start)
    before = table(sql)
    assert_refused(assistant("kv", "incr", "n", by), 65)
    assert table(sql) == before


def test_no_increment_is_lost_among_many(
    assistant: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    processes = [assistant.start("kv", "incr", "n", "0.1") for _ in range(10)]
    printed = [process.communicate()[0] for process in processes]
    assert sorted(printed, key=float) == [f"{n / 10}\n" for n in range(1, 11)]
    assert stored(sql) == {"n": "1.0"}


# ls


@pytest.fixture
def listed(assistant: CommandLine, sql: psycopg.Connection[Any]) -> CommandLine:
    """Keys that another order than that of their bytes would mix up, and one that is over."""
    put(sql, a_1="1.10", aX1='"\\t"', B="null", z="1", gone="1", ü="[]")
    expire(sql, "gone")
    return assistant


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        ([], "B\naX1\na_1\nz\n\u00fc\n"),
        (["a"], "aX1\na_1\n"),
        (["a_"], "a_1\n"),
        (["%"], ""),
        (["nothing"], ""),
        (["--limit", "2"], "B\naX1\n"),
        (["--values", "--limit", "3"], 'B\tnull\naX1\t"\\t"\na_1\t1.10\n'),
        (["--json", "nothing"], "[]\n"),
    ],
)
def test_ls_is_a_key_a_line_in_byte_order(
    listed: CommandLine, arguments: list[str], printed: str
) -> None:
    assert listed("kv", "ls", *arguments) == Finished(0, printed, "")
    assert run_on_terminal(listed, "kv", "ls", *arguments) == printed


def test_ls_long_and_json_tell_all_about_each_key(
    listed: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    sql.execute("UPDATE kv SET expires_at = now() + interval '1 hour' WHERE key = 'a_1'")
    revisions = {key: revision for key, _, revision, _ in table(sql)}
    rows = [line.split("\t") for line in listed("kv", "ls", "a", "--long").out.splitlines()]
    assert [(row[0], row[4]) for row in rows] == [("aX1", '"\\t"'), ("a_1", "1.10")]
    assert [int(row[1]) for row in rows] == [revisions["aX1"], revisions["a_1"]]
    assert all(re.fullmatch(UTC_TIME, time) for time in (rows[0][2], rows[1][2], rows[1][3]))
    assert rows[0][3] == "-"

    done = listed("kv", "ls", "a", "--json")
    assert done.out.count("\n") == 1
    assert '"value": 1.10, ' in done.out
    assert [list(entry.values()) for entry in json.loads(done.out)] == [
        ["aX1", "\t", revisions["aX1"], rows[0][2], None],
        ["a_1", 1.1, revisions["a_1"], rows[1][2], rows[1][3]],
    ]
