"""`assistant track`: runs a command, says so on the board, and ends as the command does."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest

from assistant_cli.child_process import run_command

from .conftest import CommandLine, eventually
from .terminals import Terminal

# Repeats what it reads, and leaves with 7 once it hears the signal.
LEAVES_ON_SIGNAL = """
import signal, sys
signal.signal(int(sys.argv[1]), lambda *_: sys.exit(7))
print("ready", flush=True)
for line in sys.stdin:
    print(line, end="", flush=True)
"""


def entry(sql: psycopg.Connection[Any], agent: str = "backup") -> list[str | None]:
    """The status and the detail of an agent on the board; empty where it is not there."""
    board = "SELECT value -> %s FROM kv WHERE key = 'status_board' AND value ? %s"
    row = sql.execute(board, (agent, agent)).fetchone()
    return [row[0]["status"], row[0]["detail"]] if row else []


def outcome(sql: psycopg.Connection[Any]) -> list[str]:
    """The status of `backup` and how it ended, without the time it took."""
    status, detail = entry(sql)
    assert detail is not None
    how, _, taken = detail.partition(" after ")
    assert re.fullmatch(r"\d+(ms|s)", taken)
    return [str(status), how]


def start_track(
    assistant: CommandLine, sql: psycopg.Connection[Any], *arguments: str
) -> subprocess.Popen[str]:
    """Track a command that runs until its stdin is closed; returns once the board shows it."""
    command = arguments or ("backup", "--", "cat")
    process = assistant.start("track", *command, stdin=subprocess.PIPE)
    eventually(lambda: entry(sql)[:1] == ["running"], "running")
    return process


def ignoring(number: signal.Signals) -> Callable[[], object]:
    """What has a process that is being started ignore a signal."""
    return partial(signal.signal, number, signal.SIG_IGN)


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()


@pytest.mark.parametrize(
    ("options", "detail"),
    [
        ([], "sh -c cat  # disk 1"),
        (["--detail", "\u00e4" * 1001], "\u00e4" * 998 + "\u2026"),
    ],
)
def test_while_a_command_is_tracked_the_board_says_what_runs(
    assistant: CommandLine, sql: psycopg.Connection[Any], options: list[str], detail: str
) -> None:
    track = start_track(assistant, sql, "backup", *options, "--", "sh", "-c", "cat  # disk 1")
    assert entry(sql) == ["running", detail]
    view = "SELECT live, stale, pid FROM assistant.agent_status WHERE agent = 'backup'"
    assert sql.execute(view).fetchone() == (True, False, track.pid)
    assert track.communicate(timeout=20) == ("", "")
    assert track.returncode == 0


@pytest.mark.parametrize(
    ("command", "code", "status"),
    [
        ("true", 0, "idle"),
        ("exit 1", 1, "failed"),
        ("kill -TERM $$", 143, "failed"),
        ("kill -KILL $$", 137, "failed"),
    ],
)
def test_the_exit_code_of_a_tracked_command_is_passed_through_and_on_the_board(
    assistant: CommandLine, sql: psycopg.Connection[Any], command: str, code: int, status: str
) -> None:
    done = assistant("track", "backup", "--", "sh", "-c", command)
    assert (done.code, done.out, done.err) == (code, "", "")
    assert outcome(sql) == [status, f"exit {code}"]
    assert sql.execute("SELECT count(*) FROM assistant.leases").fetchone() == (0,)


@pytest.mark.parametrize(
    ("name", "code", "complaint"),
    [
        ("missing", 127, "there is no command"),
        ("plain", 126, "cannot execute"),
        ("folder", 126, "cannot execute"),
    ],
)
def test_a_command_that_cannot_be_started_ends_as_in_a_shell(
    assistant: CommandLine,
    sql: psycopg.Connection[Any],
    tmp_path: Path,
    name: str,
    code: int,
    complaint: str,
) -> None:
    (tmp_path / "plain").write_text("no program")
    (tmp_path / "folder").mkdir()
    done = assistant("track", "backup", "--", str(tmp_path / name))
    assert (done.code, done.out, len(done.err.splitlines())) == (code, "", 1)
    assert complaint in done.err
    assert outcome(sql) == ["failed", f"exit {code}"]


def test_the_streams_of_a_tracked_command_are_its_own(assistant: CommandLine) -> None:
    text = "a\0b\r\n\u00e4\x1b[31m [red] no newline at the end"
    done = assistant("track", "backup", "--", "sh", "-c", "cat; echo oh >&2", stdin=text)
    assert (done.code, done.out, done.err) == (0, text, "oh\n")
    terminal = Terminal(assistant, "track", "backup", "--", "test", "-t", "1")
    assert terminal.finish() == 0


def test_the_arguments_and_the_environment_of_a_tracked_command_are_its_own(
    assistant: CommandLine,
) -> None:
    words = ["-h", "--detail", "x y", "--database-url", "--color=no", "--", "", "-5"]
    command = ["sh", "-c", 'printf "%s\\n" "$MINE" "$@"', "sh", *words]
    assistant.environment["MINE"] = "kept"
    done = assistant("track", "backup", "--", *command)
    assert done.out.split("\n") == ["kept", *words, ""]


def test_a_tracked_command_has_the_files_that_track_is_started_with(
    assistant: CommandLine,
) -> None:
    # As bash gives to `track diff -- diff <(this) <(that)`.
    reading, writing = os.pipe()
    command = [sys.executable, "-c", f"import os; os.write({writing}, b'here')"]
    process = assistant.start("track", "backup", "--", *command, pass_fds=[writing])
    os.close(writing)
    assert process.communicate(timeout=20) == ("", "")
    assert os.read(reading, 100) == b"here"
    os.close(reading)


def test_the_exit_code_of_a_tracked_command_is_known_where_the_ends_of_children_are_ignored(
    assistant: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    command = ["track", "backup", "--", "sh", "-c", "exit 3"]
    process = assistant.start(*command, preexec_fn=ignoring(signal.SIGCHLD))
    assert process.communicate(timeout=20) == ("", "")
    assert process.returncode == 3
    assert outcome(sql) == ["failed", "exit 3"]


def test_a_second_track_of_an_agent_is_refused_and_runs_nothing(
    assistant: CommandLine, sql: psycopg.Connection[Any], tmp_path: Path
) -> None:
    first = start_track(assistant, sql)
    marker = tmp_path / "marker"
    done = assistant("track", "backup", "--", "touch", str(marker))
    assert (done.code, done.out, len(done.err.splitlines())) == (5, "", 1)
    assert re.search(rf"backup is already held by host .+, pid {first.pid}, since ", done.err)
    assert not marker.exists()
    assert assistant("track", "other", "--", "touch", str(marker)).code == 0
    assert marker.exists()
    first.communicate(timeout=20)
    assert assistant("track", "backup", "--", "true").code == 0


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["backup"], 2),
        (["backup", "--"], 2),
        (["backup", "touch"], 2),
        (["two words", "--", "touch"], 65),
        (["--database-url", "host=/nowhere", "backup", "--", "touch"], 69),
    ],
)
def test_what_cannot_be_tracked_is_not_run(
    assistant: CommandLine, tmp_path: Path, options: list[str], code: int
) -> None:
    marker = tmp_path / "marker"
    done = assistant("track", *options, *([str(marker)] if "touch" in options else []))
    assert (done.code, done.out, len(done.err.splitlines())) == (code, "", 1)
    assert not marker.exists()


def start_leaver(assistant: CommandLine, number: signal.Signals) -> subprocess.Popen[str]:
    """Track a command that leaves on a signal, in a process group of its own."""
    command = [sys.executable, "-c", LEAVES_ON_SIGNAL, str(int(number))]
    track = assistant.start(
        "track", "backup", "--", *command, stdin=subprocess.PIPE, start_new_session=True
    )
    assert track.stdout is not None
    assert track.stdout.readline() == "ready\n"
    return track


@pytest.mark.parametrize(
    ("caught", "sent", "code"),
    [
        (signal.SIGTERM, signal.SIGTERM, 7),
        (signal.SIGHUP, signal.SIGHUP, 7),
        (signal.SIGHUP, signal.SIGTERM, 143),
    ],
)
def test_a_signal_that_would_end_track_is_passed_on_and_its_command_decides(
    assistant: CommandLine,
    sql: psycopg.Connection[Any],
    caught: signal.Signals,
    sent: signal.Signals,
    code: int,
) -> None:
    track = start_leaver(assistant, caught)
    track.send_signal(sent)
    assert track.wait(timeout=20) == code
    assert outcome(sql) == ["failed", f"exit {code}"]


def test_a_signal_in_the_first_moment_of_the_command_is_passed_on(
    assistant: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    for _ in range(8):
        done = assistant("track", "backup", "--", "sh", "-c", "kill -TERM $PPID; sleep 0.5")
        assert done.code == 143
        assert outcome(sql) == ["failed", "exit 143"]


@pytest.mark.parametrize("name", ["INT", "HUP", "TERM"])
def test_a_signal_that_track_is_started_to_ignore_is_ignored_by_its_command_as_well(
    assistant: CommandLine, sql: psycopg.Connection[Any], name: str
) -> None:
    # As after nohup, or in the background of a script.
    command = ["track", "backup", "--", "sh", "-c", f"kill -{name} $PPID $$; echo on"]
    process = assistant.start(*command, preexec_fn=ignoring(getattr(signal, f"SIG{name}")))
    assert process.communicate(timeout=20) == ("on\n", "")
    assert outcome(sql) == ["idle", "exit 0"]


async def test_a_signal_as_the_command_ends_does_not_cost_its_exit_code() -> None:
    ends = ["sh", "-c", "trap '' HUP; kill -HUP $PPID; kill -HUP $PPID; kill -HUP $PPID; exit 3"]
    assert {(await run_command(ends)).code for _ in range(300)} == {3}


def test_ctrl_c_reaches_the_command_from_the_terminal_and_only_once(
    assistant: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    track = start_leaver(assistant, signal.SIGINT)
    assert track.stdin is not None
    assert track.stdout is not None
    # To track alone: a terminal sends it to both, so it must not come a second time by track.
    track.send_signal(signal.SIGINT)
    print("still here", file=track.stdin, flush=True)
    assert track.stdout.readline() == "still here\n"
    os.killpg(track.pid, signal.SIGINT)
    assert track.wait(timeout=20) == 7
    assert outcome(sql) == ["failed", "exit 7"]


def test_after_kill_9_of_track_the_board_says_stale_at_once_and_the_agent_is_free(
    assistant: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    kill(start_track(assistant, sql))
    done = assistant("status", "backup", "--check")
    assert done.code == 4
    row = done.out.split("\t")
    assert (row[:3], row[4]) == (["backup", "running", "cat"], "stale")
    again = start_track(assistant, sql, "backup", "--detail", "again", "--", "cat")
    eventually(lambda: entry(sql) == ["running", "again"], "the second track")
    kill(again)
    assert assistant("report", "backup", "failed", "it was killed").code == 0
    assert assistant("status", "backup", "--check").code == 6


def test_a_track_outlives_its_connections(
    assistant: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    track = start_track(assistant, sql)
    sql.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    assert track.communicate(timeout=20)[0] == ""
    assert track.returncode == 0
    assert outcome(sql) == ["idle", "exit 0"]
    assert sql.execute("SELECT count(*) FROM assistant.leases").fetchone() == (0,)


def test_since_is_of_this_run_after_the_one_before_it_was_killed(assistant: CommandLine) -> None:
    def since() -> str:
        (agent,) = json.loads(assistant("status", "--json", "backup").out)["agents"]
        return str(agent["since"]) if agent["status"] == "running" else ""

    def track() -> subprocess.Popen[str]:
        process = assistant.start("track", "backup", "--", "sleep", "20")
        assert assistant("wait", "backup", "--for", "running").code == 0
        return process

    first = track()
    before = since()
    first.kill()
    first.wait()
    track()
    assert since() > before
