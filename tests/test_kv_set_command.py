"""`assistant kv set`: where a value comes from, and what is refused and changes nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import psycopg
import pytest

from .conftest import CommandLine, Finished
from .stored_keys import stored
from .test_kv_commands import assert_refused, expire, put, table


@pytest.mark.parametrize(
    ("arguments", "stdin", "text"),
    [
        (["-"], '[1.10, "\u00fc"]\n', '[1.10, "\u00fc"]'),
        ([], '{\n"a":\n1}', '{"a": 1}'),
        (["@file"], None, '[1.10, "\u00fc"]'),
        (["-", "--string"], "a\n\n", '"a\\n"'),
        (["--string"], "", '""'),
        (["@file", "--string"], None, '"[1.10, \\"\u00fc\\"]"'),
        (["--string", ""], "not read", '""'),
        (["--string", "5"], None, '"5"'),
        (["--string", 'a "b"\\'], None, '"a \\"b\\"\\\\"'),
        (["-5"], None, "-5"),
        (["--json", "-1.50e1"], None, "-15.0"),
        (["--", "-5"], None, "-5"),
    ],
)
def test_a_value_comes_from_the_argument_stdin_or_a_file(
    assistant: CommandLine,
    sql: psycopg.Connection[Any],
    tmp_path: Path,
    arguments: list[str],
    stdin: str | None,
    text: str,
) -> None:
    (tmp_path / "file").write_text('[1.10, "\u00fc"]\n', "utf-8")
    given = [argument.replace("@", f"@{tmp_path}/") for argument in arguments]
    done = assistant("kv", "set", "k", *given, stdin=stdin)
    assert (done.code, done.err) == (0, "")
    assert stored(sql) == {"k": text}


@pytest.mark.parametrize(
    ("arguments", "stdin", "code"),
    [
        (["@missing"], b"", 66),
        (["@missing", "--string"], b"", 66),
        (["@"], b"", 66),
        (["@latin"], b"", 65),
        (["@latin", "--string"], b"", 65),
        (["-"], b'"\xff"', 65),
        (["--string"], b"\xff", 65),
        ([], b"", 65),
    ],
)
def test_input_that_cannot_be_read_changes_nothing(
    assistant: CommandLine,
    sql: psycopg.Connection[Any],
    tmp_path: Path,
    arguments: list[str],
    stdin: bytes,
    code: int,
) -> None:
    (tmp_path / "latin").write_bytes(b'"\xfc"')
    put(sql, k="1")
    before = table(sql)
    given = [argument.replace("@", f"@{tmp_path}/") for argument in arguments]
    assert_refused(assistant("kv", "set", "k", *given, stdin=stdin), code)
    assert table(sql) == before


def test_a_value_is_not_awaited_from_a_terminal(assistant: CommandLine) -> None:
    master, slave = os.openpty()
    process = assistant.start("kv", "set", "k", stdin=slave)
    os.close(slave)
    out, err = process.communicate(timeout=20)
    os.close(master)
    assert_refused(Finished(process.returncode, out, err), 2)


@pytest.mark.parametrize(
    ("key", "text", "reason"),
    [
        ("k", "hello", "--string"),
        ("k", "1 2", "--string"),
        ("k", "'a'", "--string"),
        ("k", "NaN", "NaN"),
        ("k", "[Infinity]", "Infinity"),
        ("k", '{"a": 1, "a": 2}', "same key twice"),
        ("k", '"\\u0000"', "u0000"),
        ("k", '"\\ud800"', "surrogate"),
        ("k", "[" * 101 + "]" * 101, "100 deep"),
        pytest.param("k", "[" * 100_000 + "]" * 100_000, "100 deep", id="100,000 deep"),
        pytest.param("k", f'"{"x" * 1_000_000}"', "1,000,000 bytes", id="too large"),
        ("k", "1e200000", "range"),
        ("", "1", "1 to 512 bytes"),
        ("x" * 513, "1", "1 to 512 bytes"),
        ("\u00fc" * 257, "1", "1 to 512 bytes"),
        ("a\nb", "1", "control"),
        ("a\x1b", "1", "control"),
        ("a\x85", "1", "control"),
    ],
)
def test_bad_data_is_one_line_with_the_reason_and_changes_nothing(
    assistant: CommandLine, sql: psycopg.Connection[Any], key: str, text: str, reason: str
) -> None:
    put(sql, k="1")
    before = table(sql)
    done = assistant("kv", "set", key, "-", stdin=text)
    assert_refused(done, 65)
    assert reason in done.err
    assert table(sql) == before


def test_the_largest_value_and_the_longest_key_are_kept(
    assistant: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    key, text = "\u00fc" * 256, f'"{"x" * 999_998}"'
    assert assistant("kv", "set", key, "-", stdin=text).code == 0
    assert assistant("kv", "get", key).out == f"{text}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["set", "k", "--bogus"],
        ["set", "k", "-x"],
        ["set", "k", "-5x"],
        ["set", "k", "1", "2"],
        ["set", "k", "1", "--create", "--merge"],
        ["set", "k", "1", "--create", "--if-revision", "1"],
        ["set", "k", "1", "--if-revision", "x"],
        ["set", "k", "1", "--ttl", "soon"],
        ["set", "k", "1", "--ttl", "-5m"],
        ["set", "k", "1", "--ttl", "5"],
        ["get", "k", "a", "--json"],
        ["get", "k", "-r", "--json"],
        ["get", "k", "--default", "1", "--json"],
        ["ls", "--values", "--json"],
        ["ls", "--long", "--values"],
        ["ls", "--limit", "0"],
        ["rm"],
    ],
)
def test_a_wrong_command_line_is_one_line_and_changes_nothing(
    assistant: CommandLine, sql: psycopg.Connection[Any], arguments: list[str]
) -> None:
    put(sql, k="1")
    before = table(sql)
    assert_refused(assistant("kv", *arguments), 2)
    assert table(sql) == before


def test_create_loses_against_a_key_that_is_there(
    assistant: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    assert assistant("kv", "set", "k", "1", "--create").code == 0
    before = table(sql)
    done = assistant("kv", "set", "k", "2", "--create")
    assert_refused(done, 5)
    assert "'k'" in done.err
    assert table(sql) == before
    expire(sql, "k")
    assert assistant("kv", "set", "k", "3", "--create").code == 0
    assert stored(sql) == {"k": "3"}


def test_if_revision_loses_once_the_key_was_written(
    assistant: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    def set_at(revision: int) -> Finished:
        return assistant("kv", "set", "k", str(revision), "--if-revision", str(revision), "--json")

    assert_refused(set_at(1), 5)
    first = json.loads(set_at(0).out)
    assert first == {"key": "k", "revision": table(sql)[0][2]}
    second = json.loads(set_at(first["revision"]).out)
    assert second["revision"] > first["revision"]
    before = table(sql)
    assert_refused(set_at(first["revision"]), 5)
    assert_refused(set_at(0), 5)
    assert table(sql) == before


def test_merge_changes_what_it_names(assistant: CommandLine, sql: psycopg.Connection[Any]) -> None:
    patch = '{"a": null, "b": {"c": [null, 2.0]}}'
    assert assistant("kv", "set", "k", patch, "--merge").code == 0
    assert stored(sql) == {"k": '{"b": {"c": [null, 2.0]}}'}
    assert assistant("kv", "set", "k", '{"a": 1.10, "b": {"d": 1}}', "--merge").code == 0
    assert stored(sql) == {"k": '{"a": 1.10, "b": {"c": [null, 2.0], "d": 1}}'}
    assert assistant("kv", "set", "k", patch, "--merge").code == 0
    assert stored(sql) == {"k": '{"b": {"c": [null, 2.0], "d": 1}}'}
    assert_refused(assistant("kv", "set", "k", "{}", "--merge", "--if-revision", "1"), 5)


def test_a_ttl_ends_the_key_and_the_next_set_without_one_keeps_it(
    assistant: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    def seconds_left() -> float | None:
        query = "SELECT extract(epoch FROM expires_at - updated_at)::float FROM kv"
        ((left,),) = sql.execute(query).fetchall()
        return None if left is None else float(left)

    assistant("kv", "set", "k", '{"a": 1}', "--ttl", "90m")
    assert seconds_left() == pytest.approx(5400, abs=1)
    assistant("kv", "set", "k", '{"b": 1}', "--merge")
    assert seconds_left() == pytest.approx(5400, abs=60)
    assistant("kv", "set", "k", "1")
    assert seconds_left() is None
    assistant("kv", "set", "k", "1", "--ttl", "1h")
    expire(sql, "k")
    assert assistant("kv", "get", "k").code == assistant("kv", "exists", "k").code == 3
    assert assistant("kv", "ls").out == ""
    assert_refused(assistant("kv", "rm", "k"), 3)
