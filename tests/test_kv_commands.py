"""`assistant kv` on single keys: values as stored, exit codes for answers, clean refusals."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import psycopg
import pytest

from .conftest import CommandLine, Finished
from .terminals import run_on_terminal

UTC_TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"

DOCUMENT = """{
    "heartbeat": {"status": "idle", "n": 1.10}, "text": "x\\ny", "empty": "", "null": null,
    "list": ["a", 1.10, null], "a-b": 2, "a.b": {"c": 3}}"""


def put(sql: psycopg.Connection[Any], **values: str) -> None:
    for key, text in values.items():
        sql.execute("INSERT INTO kv (key, value) VALUES (%s, %s)", (key, text))


def expire(sql: psycopg.Connection[Any], key: str) -> None:
    sql.execute("UPDATE kv SET expires_at = now() - interval '1 s' WHERE key = %s", (key,))


def table(sql: psycopg.Connection[Any]) -> list[Any]:
    return sql.execute(
        "SELECT key, value::text, revision, expires_at FROM kv ORDER BY 1"
    ).fetchall()


def stored(sql: psycopg.Connection[Any]) -> dict[str, str]:
    return dict(sql.execute("SELECT key, value::text FROM kv").fetchall())


def assert_refused(done: Finished, code: int) -> None:
    assert (done.code, done.out) == (code, "")
    assert re.fullmatch(r"assistant: [^\n]+\n", done.err)


# get


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


# set


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
