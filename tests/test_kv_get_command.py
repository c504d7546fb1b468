"""`assistant kv get`: values as stored, whole or by path, and what stands in for a missing one."""

from __future__ import annotations

import json
import re
from typing import Any

import psycopg
import pytest

from .conftest import CommandLine, Finished
from .terminals import run_on_terminal
from .test_kv_commands import UTC_TIME, assert_refused, expire, put, table

DOCUMENT = """{
    "heartbeat": {"status": "idle", "n": 1.10}, "text": "x\\ny", "empty": "", "null": null,
    "list": ["a", 1.10, null], "a-b": 2, "a.b": {"c": 3}}"""


@pytest.mark.parametrize(
    ("given", "printed"),
    [
        ("1.10", "1.10"),
        ("1e2", "100"),
        ("12345678901234567890.123", "12345678901234567890.123"),
        ("1.5e-7", "0.00000015"),
        ("null", "null"),
        ('""', '""'),
        (' {"b": [1.10],"a":"\u00fc\\n"}', '{"a": "\u00fc\\n", "b": [1.10]}'),
    ],
)
def test_a_value_is_printed_digit_for_digit_on_one_line(
    assistant: CommandLine, given: str, printed: str
) -> None:
    assert assistant("kv", "set", "k", given) == Finished(0, "", "")
    assert assistant("kv", "get", "k") == Finished(0, f"{printed}\n", "")


def test_on_a_terminal_a_value_is_indented(
    assistant: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    put(sql, k='{"a": {"b": [1.10, null]}}')
    inner = '{{\n{0}    "b": [\n{0}        1.10,\n{0}        null\n{0}    ]\n{0}}}'
    whole = f'{{\n    "a": {inner.format("    ")}\n}}\n'
    assert run_on_terminal(assistant, "kv", "get", "k") == whole
    assert run_on_terminal(assistant, "kv", "get", "k", "a") == f"{inner.format('')}\n"
    assert assistant("kv", "get", "k").out == '{"a": {"b": [1.10, null]}}\n'


@pytest.mark.parametrize(
    ("path", "printed"),
    [
        ("heartbeat.status", '"idle"\n'),
        ("$.heartbeat.status", '"idle"\n'),
        ("strict $.heartbeat.n", "1.10\n"),
        ("heartbeat", '{"n": 1.10, "status": "idle"}\n'),
        ("a-b", "2\n"),
        ('"a.b".c', "3\n"),
        ("null", "null\n"),
        ("empty", '""\n'),
        ("list[1]", "1.10\n"),
        ("list[last]", "null\n"),
        ("list[*]", '"a"\n1.10\nnull\n'),
        ("list.size()", "3\n"),
        ('$.list[*] ? (@ == "a")', '"a"\n'),
    ],
)
def test_a_path_picks_values(
    assistant: CommandLine, sql: psycopg.Connection[Any], path: str, printed: str
) -> None:
    put(sql, k=DOCUMENT)
    assert assistant("kv", "get", "k", path) == Finished(0, printed, "")


@pytest.mark.parametrize("path", ["$.[", "list[", "$x"])
def test_a_path_that_is_none_is_bad_data(
    assistant: CommandLine, sql: psycopg.Connection[Any], path: str
) -> None:
    put(sql, k=DOCUMENT)
    done = assistant("kv", "get", "k", path)
    assert_refused(done, 65)
    assert "double quotes" in done.err


@pytest.mark.parametrize(
    ("path", "printed"),
    [
        (["text"], "x\ny\n"),
        (["empty"], "\n"),
        (["heartbeat"], '{"n": 1.10, "status": "idle"}\n'),
        (["list[*]"], "a\n1.10\nnull\n"),
    ],
)
def test_raw_takes_the_quotes_off_text_only(
    assistant: CommandLine, sql: psycopg.Connection[Any], path: list[str], printed: str
) -> None:
    put(sql, k=DOCUMENT)
    assert assistant("kv", "get", "k", *path, "-r") == Finished(0, printed, "")


@pytest.mark.parametrize(
    "arguments",
    [["missing"], ["missing", "--json"], ["there", "missing"], ["there", "a[9]", "-r"], ["gone"]],
)
def test_what_is_missing_is_exit_3_and_nothing_on_stdout(
    assistant: CommandLine, sql: psycopg.Connection[Any], arguments: list[str]
) -> None:
    put(sql, there='{"a": [1]}', gone="1")
    expire(sql, "gone")
    assert_refused(assistant("kv", "get", *arguments), 3)


@pytest.mark.parametrize(
    ("arguments", "default", "printed"),
    [
        (["missing"], '{"x": 1.10}', '{"x": 1.10}'),
        (["missing", "-r"], '"text"', "text"),
        (["null", "a"], '""', '""'),
        (["null"], "1", "null"),
        (["empty", "-r"], "1", ""),
    ],
)
def test_a_default_stands_in_for_what_is_missing_only(
    assistant: CommandLine,
    sql: psycopg.Connection[Any],
    arguments: list[str],
    default: str,
    printed: str,
) -> None:
    put(sql, null="null", empty='""')
    done = assistant("kv", "get", *arguments, "--default", default)
    assert done == Finished(0, f"{printed}\n", "")


@pytest.mark.parametrize(
    ("key", "default"), [("missing", "hello"), ("there", "hello"), ("missing", "NaN")]
)
def test_a_default_that_is_not_json_is_refused_whether_needed_or_not(
    assistant: CommandLine, sql: psycopg.Connection[Any], key: str, default: str
) -> None:
    put(sql, there="1")
    done = assistant("kv", "get", key, "--default", default)
    assert_refused(done, 65)
    assert done.err.startswith("assistant: --default: ")


def test_json_is_the_whole_entry_on_one_line(
    assistant: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    assistant("kv", "set", "k\u00fc", '{"n": 1.10}', "--ttl", "10m")
    done = assistant("kv", "get", "k\u00fc", "--json")
    assert (done.code, done.err, done.out.count("\n")) == (0, "", 1)
    assert '"value": {"n": 1.10}, ' in done.out
    entry = json.loads(done.out)
    ((_, _, revision, _),) = table(sql)
    assert list(entry) == ["key", "value", "revision", "updated_at", "expires_at"]
    assert (entry["key"], entry["revision"]) == ("k\u00fc", revision)
    assert re.fullmatch(UTC_TIME, entry["updated_at"])
    assert re.fullmatch(UTC_TIME, entry["expires_at"])
