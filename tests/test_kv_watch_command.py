"""`assistant kv watch`: each change is printed, or given to a command."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import psycopg
import pytest

from .conftest import CommandLine, Finished, eventually
from .stored_keys import put


def delete(sql: psycopg.Connection[Any], key: str) -> None:
    assert sql.execute("DELETE FROM kv WHERE key = %s", (key,)).rowcount == 1


def revision_of(sql: psycopg.Connection[Any], key: str) -> int:
    ((revision,),) = sql.execute("SELECT revision FROM kv WHERE key = %s", (key,)).fetchall()
    return int(revision)


def next_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def start_without_initial(
    assistant: CommandLine, sql: psycopg.Connection[Any], *arguments: str
) -> subprocess.Popen[str]:
    """Start a watch that shows what comes; returns once it has seen what is there."""
    watch = assistant.start("kv", "watch", *arguments, "--no-initial")
    looked = (
        "SELECT FROM pg_stat_activity WHERE datname = current_database() "
        "AND pid <> pg_backend_pid() AND state = 'idle' AND query LIKE '%revision%'"
    )
    eventually(lambda: sql.execute(looked).rowcount > 0, "the first look")
    return watch


# watch


def test_watch_prints_the_value_and_then_each_change(
    assistant: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    put(sql, "k", '{"n": 1.10}')
    watch = assistant.start("kv", "watch", "k", "-n", "4")
    assert next_line(watch) == '{"n": 1.10}\n'
    put(sql, "other", "1")
    put(sql, "k", "null")
    assert next_line(watch) == "null\n"
    delete(sql, "k")
    assert next_line(watch) == "\n"
    put(sql, "k", "2.0")
    assert watch.communicate(timeout=20) == ("2.0\n", "")
    assert watch.returncode == 0


def test_watch_awaits_a_key_that_is_not_there_yet(
    assistant: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    watch = start_without_initial(assistant, sql, "k", "-n", "1")
    put(sql, "k", "1")
    assert watch.communicate(timeout=20) == ("1\n", "")


def test_watch_without_the_initial_value_prints_changes_only(
    assistant: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    put(sql, "k", "1")
    watch = start_without_initial(assistant, sql, "k", "-n", "1")
    put(sql, "k", "2")
    assert watch.communicate(timeout=20) == ("2\n", "")


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [(["k"], "1\n"), (["k", "--no-initial"], ""), (["missing"], ""), (["k", "-n", "2"], "1\n")],
)
def test_watch_leaves_at_its_deadline(
    assistant: CommandLine, sql: psycopg.Connection[Any], arguments: list[str], printed: str
) -> None:
    put(sql, "k", "1")
    done = assistant("kv", "watch", *arguments, "--timeout", "1s")
    assert (done.code, done.out, done.err.count("\n")) == (124, printed, 1)


def test_watch_of_a_prefix_names_the_key_on_each_line(
    assistant: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    for key in ("a_2", "a_1", "aX1", "b"):
        put(sql, key, "1.10")
    watch = assistant.start("kv", "watch", "--prefix", "a_", "-n", "4")
    assert next_line(watch) == '{"key": "a_1", "value": 1.10}\n'
    assert next_line(watch) == '{"key": "a_2", "value": 1.10}\n'
    put(sql, "aX1", "2")
    delete(sql, "a_1")
    assert next_line(watch) == '{"key": "a_1", "deleted": true}\n'
    put(sql, "a_3", '"\u00fc"')
    assert watch.communicate(timeout=20) == ('{"key": "a_3", "value": "\u00fc"}\n', "")


def test_watch_as_json_tells_revision_and_times(
    assistant: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    put(sql, "k", "1.10")
    revision = revision_of(sql, "k")
    watch = assistant.start("kv", "watch", "k", "--json", "-n", "2")
    line = next_line(watch)
    assert '"value": 1.10, ' in line
    assert line == assistant("kv", "get", "k", "--json").out
    delete(sql, "k")
    out, _ = watch.communicate(timeout=20)
    assert json.loads(out) == {"key": "k", "deleted": True, "revision": revision}


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["k", "--prefix", "a"],
        ["k", "-n", "0"],
        ["k", "--timeout", "soon"],
        ["k", "echo"],
        ["k", "--bogus"],
    ],
)
def test_a_watch_that_makes_no_sense_is_a_usage_error(
    assistant: CommandLine, arguments: list[str]
) -> None:
    done = assistant("kv", "watch", *arguments)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)


# watch -- CMD


def test_a_command_gets_each_change(assistant: CommandLine, sql: psycopg.Connection[Any]) -> None:
    put(sql, "k", "1.10")
    first = revision_of(sql, "k")
    script = 'printf "%s %s %s:%s:%s\\n" $ASSISTANT_KEY $ASSISTANT_REVISION "$ASSISTANT_DELETED" '
    arguments = ["k", "-n", "3", "--", "sh", "-c", script + '"$(cat)" "$*"', "sh", "--json", "-n"]
    watch = assistant.start("kv", "watch", *arguments)
    assert next_line(watch) == f"k {first} :1.10:--json -n\n"
    delete(sql, "k")
    assert next_line(watch) == f"k {first} 1::--json -n\n"
    put(sql, "k", '"\u00fc"')
    line = f'k {revision_of(sql, "k")} :"\u00fc":--json -n\n'
    assert watch.communicate(timeout=20) == (line, "")
    assert watch.returncode == 0


def test_a_command_that_fails_does_not_end_the_watch_but_its_code_is_the_last_ones(
    assistant: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    put(sql, "k", "7")
    command = ["sh", "-c", "read code; echo $code; exit $code"]
    watch = assistant.start("kv", "watch", "k", "-n", "2", "--", *command)
    assert next_line(watch) == "7\n"
    put(sql, "k", "9")
    assert watch.communicate(timeout=20) == ("9\n", "")
    assert watch.returncode == 9


@pytest.mark.parametrize(
    ("command", "code"),
    [(["/no/such/command"], 127), (["/"], 126), (["sh", "-c", "kill -9 $$"], 137)],
)
def test_a_command_ends_with_the_code_that_a_shell_would_give(
    assistant: CommandLine, sql: psycopg.Connection[Any], command: list[str], code: int
) -> None:
    put(sql, "k", "1")
    done = assistant("kv", "watch", "k", "-n", "1", "--", *command)
    assert (done.code, done.out) == (code, "")
    assert done.err.count("\n") == (code < 128)


def test_a_command_need_not_read_the_value(
    assistant: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    put(sql, "k", f'"{"x" * 900_000}"')
    done = assistant("kv", "watch", "k", "-n", "1", "--", "echo", "read nothing")
    assert done == Finished(0, "read nothing\n", "")
