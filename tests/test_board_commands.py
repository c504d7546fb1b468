"""The board for scripts: `report` puts a status on it, `wait` waits for one."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from typing import Any

import psycopg
import pytest

from .conftest import CommandLine, eventually
from .test_track_command import entry, kill, start_track


def start_wait(
    assistant: CommandLine, sql: psycopg.Connection[Any], *arguments: str
) -> subprocess.Popen[str]:
    """Start `wait`; returns once it has looked and found that it has to wait."""
    process = assistant.start("wait", *arguments)
    looked = (
        "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() "
        "AND pid <> pg_backend_pid() AND state = 'idle' AND query = 'COMMIT'"
    )
    eventually(lambda: sql.execute(looked).fetchone(), "its first look")
    assert process.poll() is None
    return process


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["two words", "idle"], "is no name for an agent"),
        (["", "idle"], "is no name for an agent"),
        (["a" * 101, "idle"], "is no name for an agent"),
        (["backup", "idle", "\u00e4" * 1001], "at most 2,000 bytes"),
        (["backup", "idle", "\udcff"], "surrogate"),
    ],
)
def test_a_report_of_what_is_no_entry_is_refused_and_writes_nothing(
    assistant: CommandLine, sql: psycopg.Connection[Any], arguments: list[str], complaint: str
) -> None:
    done = assistant("report", *arguments)
    assert (done.code, done.out, len(done.err.splitlines())) == (65, "", 1)
    assert complaint in done.err
    assert sql.execute("SELECT count(*) FROM kv").fetchone() == (0,)


def test_a_report_of_a_status_that_is_none_is_a_usage_error(
    assistant: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    done = assistant("report", "backup", "Idle")
    assert (done.code, done.out) == (2, "")
    assert done.err == "assistant: 'Idle' is no status; it is idle, running or failed\n"
    assert sql.execute("SELECT count(*) FROM kv").fetchone() == (0,)


def test_a_report_says_nothing_and_replaces_the_entry(
    assistant: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    detail = "\u00e4" * 1000
    done = assistant("report", "backup", "running", detail)
    assert (done.code, done.out, done.err) == (0, "", "")
    assert entry(sql) == ["running", detail]
    assert assistant("report", "backup", "idle").code == 0
    assert entry(sql) == ["idle", None]


def test_a_report_for_an_agent_that_a_process_holds_is_refused_and_names_it(
    assistant: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    track = start_track(assistant, sql)
    done = assistant("report", "backup", "failed", "not so")
    assert (done.code, done.out, len(done.err.splitlines())) == (5, "", 1)
    assert re.search(rf"backup is held by host .+, pid {track.pid}, since ", done.err)
    assert entry(sql) == ["running", "cat"]
    assert assistant("report", "other", "idle").code == 0


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["calm", "--for", "failed, idle"], 0),
        (["calm", "nobody", "--for", "stopped"], 0),
        (["calm", "broken", "--for", "idle", "--any"], 0),
        (["broken", "--for", "failed", "--fail-on", "stale"], 0),
        (["calm", "--for", "running,failed,live,stale"], 124),
        (["calm", "broken", "--for", "idle"], 124),
        (["nobody", "broken", "--for", "idle", "--any"], 124),
        (["broken", "--for", "idle", "--fail-on", "failed"], 6),
        (["calm", "broken", "--for", "idle", "--any", "--fail-on", "stale,failed"], 6),
    ],
)
def test_wait_answers_at_once_with_what_is_on_the_board(
    assistant: CommandLine, sql: psycopg.Connection[Any], options: list[str], code: int
) -> None:
    board = {
        "calm": {"status": "idle", "detail": None},
        "broken": {"status": "failed", "detail": "disk full"},
    }
    sql.execute("INSERT INTO kv (key, value) VALUES ('status_board', %s)", (json.dumps(board),))
    done = assistant("wait", *options, "--timeout", "1s" if code == 124 else "1h")
    assert (done.code, done.out, len(done.err.splitlines())) == (code, "", int(code != 0))
    if code == 6:
        assert done.err == "assistant: broken is failed: disk full\n"


@pytest.mark.parametrize(
    "options",
    [
        ["--for", "idle"],
        ["backup"],
        ["backup", "--for", "idle,busy"],
        ["backup", "--for", ""],
        ["backup", "--for", "idle", "--fail-on", "broken"],
        ["backup", "--for", "idle", "--timeout", "soon"],
    ],
)
def test_wait_for_what_cannot_be_is_a_usage_error(
    environment: dict[str, str], options: list[str]
) -> None:
    done = CommandLine(environment)("wait", *options)
    assert (done.code, done.out, len(done.err.splitlines())) == (2, "", 1)


def test_wait_ends_when_agents_that_were_not_there_are_reported(
    assistant: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    wait = start_wait(assistant, sql, "backup", "other", "--for", "idle", "--fail-on", "failed")
    assistant("report", "other", "idle")
    assert wait.poll() is None
    assistant("report", "backup", "idle")
    assert wait.communicate(timeout=20) == ("", "")
    assert wait.returncode == 0


def test_wait_ends_when_an_agent_fails_meanwhile(
    assistant: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    wait = start_wait(assistant, sql, "backup", "--for", "idle", "--fail-on", "failed")
    assistant("report", "backup", "failed", "disk full")
    assert wait.communicate(timeout=20) == ("", "assistant: backup is failed: disk full\n")
    assert wait.returncode == 6


def test_the_timeout_of_wait_is_one_for_all_agents_and_not_prolonged_by_changes(
    assistant: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    began = time.monotonic()
    wait = start_wait(assistant, sql, "a", "b", "c", "d", "--for", "idle", "--timeout", "2s")
    board = """
        INSERT INTO kv (key, value) VALUES ('status_board', jsonb_build_object('a',
            jsonb_build_object('status', 'running', 'detail', clock_timestamp()::text)))
        ON CONFLICT (key) DO UPDATE SET value = excluded.value
    """
    while wait.poll() is None:
        assert time.monotonic() < began + 7
        sql.execute(board)
    assert time.monotonic() >= began + 2
    assert wait.returncode == 124
    missing = ", ".join(f"{agent} is not on the board" for agent in "bcd")
    error = f"assistant: not idle within 2s: a is running, {missing}\n"
    assert wait.communicate() == ("", error)


def test_a_status_that_another_program_made_up_makes_nobody_live(assistant: CommandLine) -> None:
    entry = '{"x": {"status": "live", "detail": null}}'
    assert assistant("kv", "set", "status_board", entry).code == 0
    assert assistant("wait", "x", "--for", "live", "--timeout", "100ms").code == 124
    assert assistant("wait", "x", "--for", "stopped").code == 0


def test_a_status_whose_process_is_gone_does_not_count_and_is_stale(
    assistant: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    track = start_track(assistant, sql)
    assert assistant("wait", "backup", "--for", "live").code == 0
    assert assistant("wait", "backup", "--for", "running", "--fail-on", "stale").code == 0
    kill(track)
    assert assistant("wait", "backup", "--for", "stale").code == 0
    done = assistant("wait", "backup", "--for", "running,live,stopped", "--timeout", "1s")
    assert done.code == 124
    done = assistant("wait", "backup", "--for", "running", "--fail-on", "stale")
    assert (done.code, done.out, done.err) == (4, "", "assistant: backup is stale: cat\n")


def test_wait_sees_a_death_although_nobody_announces_it(
    assistant: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    track = start_track(assistant, sql)
    wait = start_wait(assistant, sql, "backup", "--for", "idle", "--fail-on", "stale")
    kill(track)
    # Sooner than the lease of 15 s lapses.
    assert wait.wait(timeout=10) == 4


def test_wait_is_interrupted_silently(assistant: CommandLine, sql: psycopg.Connection[Any]) -> None:
    wait = start_wait(assistant, sql, "backup", "--for", "idle")
    wait.send_signal(signal.SIGINT)
    assert wait.communicate(timeout=20) == ("", "")
    assert wait.returncode == 130


def test_an_agent_that_was_reported_is_taken_off_the_board(assistant: CommandLine) -> None:
    assistant("report", "backup", "failed")
    assistant("report", "build", "idle")
    done = assistant("kv", "set", "status_board", "--merge", '{"backup": null}')
    assert (done.code, done.err) == (0, "")
    board = assistant("status").out
    assert [line.split("\t")[0] for line in board.splitlines()] == ["build"]
