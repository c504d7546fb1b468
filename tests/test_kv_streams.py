"""`assistant kv watch`, `export` and `import` through outages, signals and closed pipes."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import subprocess
from pathlib import Path
from typing import Any

import psycopg
import pytest

from .conftest import CommandLine, eventually
from .stored_keys import put, stored
from .test_kv_export_and_import_commands import LINES
from .test_kv_watch_command import next_line

LISTENING = """
SELECT FROM pg_stat_activity WHERE application_name = 'assistant' AND state = 'idle'
    AND datname = current_database() AND query LIKE '%kv%'
"""
MANY_NOTIFICATIONS = """
DO $$
BEGIN
    FOR number IN 1 .. 5000 LOOP
        INSERT INTO kv VALUES ('n/' || repeat('x', 200) || number, '1');
        COMMIT;
    END LOOP;
END
$$
"""


def fill(sql: psycopg.Connection[Any], count: int, text: str) -> None:
    sql.execute(
        "INSERT INTO kv SELECT 'k/' || n, to_jsonb(%s::text) FROM generate_series(1, %s) AS n",
        (text, count),
    )


# Outages


def test_watch_carries_on_when_its_connection_is_ended(
    assistant: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    put(sql, "k", "0")
    watch = assistant.start("kv", "watch", "k")
    assert next_line(watch) == "0\n"
    for number in range(1, 4):
        sql.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        put(sql, "k", str(number))
        assert next_line(watch) == f"{number}\n"


def test_watch_outlives_a_restart_of_the_server(
    private_home: Path, environment: dict[str, str]
) -> None:
    assistant = CommandLine({**environment, "ASSISTANT_HOME": str(private_home)})
    for key in ("a", "b", "c"):
        assert assistant("kv", "set", key, "1").code == 0
    try:
        of_key = assistant.start("kv", "watch", "a", stderr=subprocess.DEVNULL)
        of_all = assistant.start("kv", "watch", "--prefix", "", stderr=subprocess.DEVNULL)
        assert [next_line(of_all)[:11] for _ in range(3)] == [f'{{"key": "{k}"' for k in "abc"]
        assert next_line(of_key) == "1\n"
        assert assistant("db", "stop").code == 0
        assert assistant("kv", "rm", "b").code == 0
        # What did not change is not shown again.
        assert next_line(of_all) == '{"key": "b", "deleted": true}\n'
        assert assistant("kv", "set", "a", "2").code == 0
        assert next_line(of_all) == '{"key": "a", "value": 2}\n'
        assert next_line(of_key) == "2\n"
    finally:
        assistant.end_all()


@pytest.mark.parametrize("command", ["export", "import"])
def test_a_transfer_that_is_cut_off_says_so(
    assistant: CommandLine, sql: psycopg.Connection[Any], command: str
) -> None:
    fill(sql, 20_000, "x" * 100)
    process = assistant.start("kv", command, stdin=subprocess.PIPE)
    eventually(lambda: end_copy(sql), "the transfer")
    out, errors = process.communicate(LINES, timeout=20)
    assert (process.returncode, errors.count("\n")) == (69, 1)
    assert out.count("\n") < 20_000
    assert "a" not in stored(sql)


def end_copy(sql: psycopg.Connection[Any]) -> bool:
    """End the connection of a transfer that is under way; False where there is none."""
    ended = sql.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid() "
        "AND state = 'active' AND query LIKE '%COPY%'"
    )
    return ended.rowcount > 0


# Closed pipes and signals


@pytest.mark.parametrize(
    "arguments", [["ls"], ["ls", "--values"], ["ls", "--json"], ["export"], ["get", "large"]]
)
def test_a_reader_that_leaves_ends_the_command_silently(
    assistant: CommandLine, sql: psycopg.Connection[Any], arguments: list[str]
) -> None:
    fill(sql, 20_000, "x")
    put(sql, "large", f'"{"x" * 900_000}"')
    process = assistant.start("kv", *arguments)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.read(5)
    process.stdout.close()
    assert process.wait(timeout=20) == 141
    assert process.stderr.read() == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["get", "k"],
        ["ls"],
        ["export"],
        ["set", "k", "2", "--json"],
        ["incr", "k"],
        ["watch", "k"],
        ["watch", "k", "-n", "1"],
    ],
)
def test_a_reader_that_never_was_ends_the_command_silently(
    assistant: CommandLine, sql: psycopg.Connection[Any], arguments: list[str]
) -> None:
    put(sql, "k", "1")
    reading, writing = os.pipe()
    os.close(reading)
    process = assistant.start("kv", *arguments, stdout=writing)
    os.close(writing)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (141, "")


def test_a_watch_ends_when_its_reader_leaves_without_waiting_for_a_change(
    assistant: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    put(sql, "k", "1")
    for arguments in (["kv", "watch", "k"], ["status", "--watch"]):
        watch = assistant.start(*arguments)
        assert watch.stdout is not None
        assert watch.stdout.readline()
        watch.stdout.close()
        assert watch.wait(timeout=20) == 141
        assert watch.stderr is not None
        assert watch.stderr.read() == ""


def test_what_nobody_reads_does_not_fill_the_queue_of_the_server(
    assistant: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    """A watch whose pipe is full, such as one that a pager shows."""
    watch = assistant.start("kv", "watch", "--prefix", "n/")
    assert watch.stdout is not None
    fcntl.fcntl(watch.stdout.fileno(), fcntl.F_SETPIPE_SZ, select.PIPE_BUF)
    eventually(lambda: sql.execute(LISTENING).rowcount, "the watch")
    sql.execute("SET synchronous_commit = off")
    # One notification a transaction, more than the buffers of a connection hold.
    sql.execute(MANY_NOTIFICATIONS)
    assert sql.execute("SELECT pg_notification_queue_usage() > 0").fetchone() == (True,)

    def emptied() -> bool:
        sql.execute("NOTIFY anything")
        return sql.execute("SELECT pg_notification_queue_usage() = 0").fetchone() == (True,)

    eventually(emptied, "the end of the queue")
    put(sql, "n/last", '"said at last"')
    assert any("said at last" in line for line in watch.stdout)
    assert watch.poll() is None


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told_and_is_no_crash(
    assistant: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    put(sql, "k", "1")
    with Path("/dev/full").open("w") as full:
        for arguments in (["kv", "get", "k"], ["kv", "export"], ["send", "hello"]):
            process = assistant.start(*arguments, stdout=full)
            _, error = process.communicate()
            assert process.returncode == 74
            assert error == "assistant: cannot write the output: No space left on device\n"


def test_ctrl_c_ends_a_watch_silently(assistant: CommandLine, sql: psycopg.Connection[Any]) -> None:
    put(sql, "k", "1")
    watch = assistant.start("kv", "watch", "k")
    assert next_line(watch) == "1\n"
    watch.send_signal(signal.SIGINT)
    assert watch.communicate(timeout=20) == ("", "")
    assert watch.returncode == 130


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_watch_while_its_command_runs(
    assistant: CommandLine, sql: psycopg.Connection[Any], number: signal.Signals
) -> None:
    put(sql, "k", "1")
    command = ["sh", "-c", "cat; exec sleep 60"]
    watch = assistant.start("kv", "watch", "k", "--", *command, start_new_session=True)
    assert next_line(watch) == "1\n"
    # As a terminal does, to the command as well.
    os.killpg(watch.pid, number)
    watch.wait(timeout=5)
    assert watch.returncode in {128 + number, -number}


def test_ctrl_c_ends_an_import_that_waits_for_its_input(
    assistant: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    process = assistant.start("kv", "import", stdin=subprocess.PIPE)
    copying = (
        "SELECT FROM pg_stat_activity WHERE datname = current_database() "
        "AND pid <> pg_backend_pid() AND query LIKE 'COPY%'"
    )
    eventually(lambda: sql.execute(copying).rowcount > 0, "the import")
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=5) == 130
    assert process.communicate() == ("", "")


def test_ctrl_c_ends_an_export_that_waits_for_its_reader(
    assistant: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    fill(sql, 5_000, "x" * 100)
    reading, writing = os.pipe()
    try:
        process = assistant.start("kv", "export", stdout=writing)
        eventually(lambda: not select.select([], [writing], [], 0)[1], "a full pipe")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=5) == 130
    finally:
        os.close(reading)
        os.close(writing)
    assert process.communicate()[1] == ""
