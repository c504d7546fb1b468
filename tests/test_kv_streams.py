"""`assistant kv watch`, `export` and `import`: through outages, signals, closed pipes and bulk."""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

from .conftest import CommandLine, Finished, eventually

UPSERT = "INSERT INTO kv (key, value) VALUES (%s, %s) ON CONFLICT (key) DO UPDATE SET value = %s"

# As its parent measures a command: what a test itself holds in memory would count as well.
MEASURE = """
import os, subprocess, sys
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(child.pid, 0)
child.returncode = os.waitstatus_to_exitcode(status)
print(child.returncode, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))
"""

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


def put(sql: psycopg.Connection[Any], key: str, text: str) -> None:
    sql.execute(UPSERT, (key, text, text))


def delete(sql: psycopg.Connection[Any], key: str) -> None:
    assert sql.execute("DELETE FROM kv WHERE key = %s", (key,)).rowcount == 1


def fill(sql: psycopg.Connection[Any], count: int, text: str) -> None:
    sql.execute(
        "INSERT INTO kv SELECT 'k/' || n, to_jsonb(%s::text) FROM generate_series(1, %s) AS n",
        (text, count),
    )


def stored(sql: psycopg.Connection[Any]) -> dict[str, str]:
    return dict(sql.execute("SELECT key, value::text FROM kv").fetchall())


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


# export and import


def test_what_was_exported_comes_back_as_it_was(
    assistant: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    values = {
        "z": "1.10",
        "B": "null",
        "a/\u00fc\U0001f600": '"\u00fc \\\\ \\" \\n \\u0001 \\u001b \u2028 \\r\\t"',
        'a/"\\': '{"a": [12345678901234567890.123, {"": ""}]}',
        "a/large": f'"{"x" * 999_998}"',
    }
    for key, text in values.items():
        put(sql, key, text)
    put(sql, "over", "1")
    sql.execute("UPDATE kv SET expires_at = now() WHERE key = 'over'")
    done = assistant("kv", "export")
    assert (done.code, done.err) == (0, "")
    assert [json.loads(line)["key"] for line in done.out.split("\n")[:-1]] == sorted(values)
    assert '\n{"key": "z", "value": 1.10}\n' in done.out

    sql.execute("TRUNCATE kv")
    assert assistant("kv", "import", stdin=done.out) == Finished(0, "", "assistant: wrote 5 keys\n")
    assert stored(sql) == values
    assert assistant("kv", "export") == done


def test_export_of_a_prefix_takes_it_literally(
    assistant: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    for key in ("a_1", "aX1", "b"):
        put(sql, key, "1")
    assert assistant("kv", "export", "a_").out == '{"key": "a_1", "value": 1}\n'
    assert assistant("kv", "export", "nothing") == Finished(0, "", "")


LINES = '{"key": "a", "value": "new"}\n{"key": "b", "value": 1.10}\n'


@pytest.mark.parametrize(
    ("options", "code", "said", "kept"),
    [
        ([], 0, "wrote 2 keys", {"a": '"new"', "b": "1.10"}),
        (["--on-conflict", "replace"], 0, "wrote 2 keys", {"a": '"new"', "b": "1.10"}),
        (["--on-conflict", "skip"], 0, "wrote 1 key", {"a": '"old"', "b": "1.10"}),
        (["--on-conflict", "fail"], 5, "the key 'a' exists already", {"a": '"old"'}),
        (["--dry-run"], 0, "would write 2 keys", {"a": '"old"'}),
        (["--dry-run", "--on-conflict", "skip"], 0, "would write 1 key", {"a": '"old"'}),
        (["--dry-run", "--on-conflict", "fail"], 5, "the key 'a' exists already", {"a": '"old"'}),
        (["--on-conflict", "merge"], 2, "--on-conflict", {"a": '"old"'}),
    ],
)
def test_what_an_import_does_with_keys_that_exist(
    assistant: CommandLine,
    sql: psycopg.Connection[Any],
    options: list[str],
    code: int,
    said: str,
    kept: dict[str, str],
) -> None:
    put(sql, "a", '"old"')
    done = assistant("kv", "import", "-", *options, stdin=LINES)
    assert (done.code, done.out, done.err.count("\n")) == (code, "", 1)
    assert said in done.err
    assert stored(sql) == kept


@pytest.mark.parametrize(
    "line",
    [
        "hello",
        "[]",
        '{"key": "k"}',
        '{"key": "k", "value": 1, "more": 2}',
        '{"key": 1, "value": 1}',
        '{"key": "", "value": 1}',
        '{"key": "\\n", "value": 1}',
        '{"key": "k", "value": NaN}',
        '{"key": "k", "value": {"a": 1, "a": 2}}',
        '{"key": "k", "value": "\\u0000"}',
        '{"key": "k", "value": "\\udc00"}',
        '{"key": "k", "value": 1} {"key": "l", "value": 1}',
        b'{"key": "k", "value": "\xff"}',
        pytest.param(f'{{"key": "k", "value": "{"x" * 5_000_000}"}}', id="too large"),
    ],
)
@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_a_bad_line_is_named_and_nothing_is_imported(
    assistant: CommandLine, sql: psycopg.Connection[Any], line: str | bytes, options: list[str]
) -> None:
    put(sql, "a", '"old"')
    bad = line if isinstance(line, bytes) else line.encode()
    data = LINES.encode() + b"\n" + bad + b'\n{"key": "z", "value": 1}\n'
    done = assistant("kv", "import", *options, stdin=data)
    assert (done.code, done.out, done.err.count("\n")) == (65, "", 1)
    assert "line 4" in done.err
    assert "nothing was imported" in done.err
    assert stored(sql) == {"a": '"old"'}


def test_import_reads_a_file(
    assistant: CommandLine, sql: psycopg.Connection[Any], tmp_path: Path
) -> None:
    file = tmp_path / "keys"
    file.write_text(f"\r\n{LINES.rstrip()}\r\n\n", "utf-8")
    assert assistant("kv", "import", str(file)).code == 0
    assert stored(sql) == {"a": '"new"', "b": "1.10"}
    for unreadable in (tmp_path / "missing", tmp_path):
        done = assistant("kv", "import", str(unreadable))
        assert (done.code, done.out, done.err.count("\n")) == (66, "", 1)
        assert str(unreadable) in done.err


def test_memory_does_not_grow_with_the_number_of_keys(
    assistant: CommandLine, sql: psycopg.Connection[Any], tmp_path: Path
) -> None:
    def peak(*arguments: str) -> int:
        command = [sys.executable, "-c", MEASURE, *assistant.command("kv", *arguments)]
        done = subprocess.run(command, capture_output=True, env=assistant.environment, check=True)
        code, size = done.stdout.split()
        assert int(code) == 0
        return int(size)

    few, many = tmp_path / "few", tmp_path / "many"
    for file, count in ((few, 1_000), (many, 100_000)):
        line = '{{"key": "k/{}", "value": "{}"}}\n'
        file.write_text("".join(line.format(n, "x" * 80) for n in range(count)), "utf-8")
    base = peak("import", str(few))
    assert peak("import", str(many)) < base + 30_000_000
    assert sql.execute("SELECT FROM kv").rowcount == 100_000
    base = peak("export", "k/12345")
    assert peak("export") < base + 30_000_000
