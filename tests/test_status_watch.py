"""`assistant status --watch`: a line a change, or redrawn in place, through every outage."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import psycopg
import pytest

from .conftest import CommandLine, eventually
from .terminals import Terminal
from .test_status_command import agents_of, hold, lapse


def read_lines(process: subprocess.Popen[str], count: int) -> list[dict[str, Any]]:
    assert process.stdout is not None
    return [json.loads(process.stdout.readline()) for _ in range(count)]


def test_watch_in_a_pipe_is_a_line_a_change(
    assistant: CommandLine, dsn: str, sql: psycopg.Connection[Any]
) -> None:
    assistant("report", "backup", "idle")
    watch = assistant.start("status", "--watch")
    (first,) = read_lines(watch, 1)
    assert first["schema"] == 1
    assert agents_of(first)["backup"]["status"] == "idle"

    # Nothing of this is a change: other keys, the same report again, messages that grow older.
    sql.execute("INSERT INTO kv (key, value) VALUES ('other', '1')")
    assistant("report", "backup", "idle")
    assistant("report", "backup", "running", "disk 1")
    (second,) = read_lines(watch, 1)
    assert agents_of(second)["backup"]["detail"] == "disk 1"

    hold(dsn, "backup")
    (held,) = read_lines(watch, 1)
    assert agents_of(held)["backup"]["live"] is True
    lapse(sql, "backup")
    (stale,) = read_lines(watch, 1)
    assert (agents_of(stale)["backup"]["live"], agents_of(stale)["backup"]["stale"]) == (
        False,
        True,
    )


def test_watch_shows_nothing_for_what_only_ages(
    assistant: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    assistant("send", "hello")
    watch = assistant.start("status", "--watch")
    (first,) = read_lines(watch, 1)
    assert first["inbox"]["oldest_seconds"] > 0
    reads = (
        "SELECT query_start FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid() AND state = 'idle'"
    )
    seen: set[object] = set()

    def seen_often() -> bool:
        seen.update(sql.execute(reads).fetchall())
        return len(seen) > 3

    eventually(seen_often, "three reads")
    assistant("report", "backup", "idle")
    (second,) = read_lines(watch, 1)
    assert agents_of(second).keys() == {"backup"}


def test_watch_sees_a_lapse_however_busy_other_keys_are(
    assistant: CommandLine, dsn: str, sql: psycopg.Connection[Any]
) -> None:
    assistant("report", "backup", "running")
    hold(dsn, "backup")
    watch = assistant.start("status", "--watch")
    read_lines(watch, 1)
    lapse(sql, "backup")
    enough = threading.Event()

    def change_other_keys() -> None:
        while not enough.wait(0.05):
            sql.execute("SELECT pg_notify('assistant_kv', 'other')")

    busy = threading.Thread(target=change_other_keys)
    busy.start()
    try:
        (stale,) = read_lines(watch, 1)
    finally:
        enough.set()
        busy.join()
    assert agents_of(stale)["backup"]["stale"] is True


def test_watch_carries_on_when_its_connection_is_ended(
    assistant: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    assistant("report", "backup", "idle")
    watch = assistant.start("status", "--watch")
    read_lines(watch, 1)
    for number in range(3):
        sql.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        assistant("report", "backup", "running", str(number))
        (line,) = read_lines(watch, 1)
        assert agents_of(line)["backup"]["detail"] == str(number)


def test_watch_ends_silently_with_its_reader_and_on_ctrl_c(assistant: CommandLine) -> None:
    assistant("report", "backup", "idle")
    watch = assistant.start("status", "--watch")
    read_lines(watch, 1)
    watch.send_signal(signal.SIGINT)
    assert watch.wait(timeout=20) == 130
    assert watch.communicate() == ("", "")

    watch = assistant.start("status", "--watch")
    read_lines(watch, 1)
    assert watch.stdout is not None
    assert watch.stderr is not None
    watch.stdout.close()
    assistant("report", "backup", "running")
    assert watch.wait(timeout=20) == 141
    assert watch.stderr.read() == ""


@pytest.mark.parametrize("command", [["status", "--watch"], ["history", "--follow"]])
def test_what_follows_ends_at_its_deadline(assistant: CommandLine, command: list[str]) -> None:
    assistant("report", "backup", "idle")
    assistant("send", "hello")
    done = assistant(*command, "--timeout", "1s")
    assert (done.code, len(done.out.splitlines()), len(done.err.splitlines())) == (124, 1, 1)


def test_watch_outlives_a_restart_of_the_server(
    private_home: Path, environment: dict[str, str]
) -> None:
    assistant = CommandLine(
        {**environment, "ASSISTANT_HOME": str(private_home), "TERM": "xterm-256color"}
    )
    assert assistant("report", "backup", "idle").code == 0
    watch = assistant.start("status", "--watch", stderr=subprocess.DEVNULL)
    terminal = Terminal(assistant, "status", "--watch")
    try:
        read_lines(watch, 1)
        terminal.wait_for("idle")
        assert assistant("db", "stop").code == 0
        terminal.wait_for("the database has not answered for")
        assert assistant("report", "backup", "running", "after the restart").code == 0
        (line,) = read_lines(watch, 1)
        assert agents_of(line)["backup"]["detail"] == "after the restart"
        terminal.wait_for("after the restart")
    finally:
        assistant.end_all()


@pytest.mark.parametrize("kind", ["dumb", "unknown"])
def test_watch_on_a_terminal_that_draws_nothing_again_is_a_line_a_change(
    assistant: CommandLine, kind: str
) -> None:
    assistant("report", "backup", "running", "the disk")
    assistant.environment["TERM"] = kind
    terminal = Terminal(assistant, "status", "--watch")
    terminal.wait_for("the disk")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.finish() == 130


ITS_OWN_SCREEN, THE_SCREEN_BEFORE = "\x1b[?1049h", "\x1b[?1049l"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_watch_that_a_signal_ends_leaves_the_terminal_as_it_was(
    assistant: CommandLine, number: signal.Signals
) -> None:
    assistant("report", "backup", "idle")
    assistant.environment["TERM"] = "xterm-256color"
    terminal = Terminal(assistant, "status", "--watch")
    eventually(lambda: "backup" in terminal.plain, "the board")
    terminal.process.send_signal(number)
    assert (terminal.finish(), terminal.errors) == (128 + number, "")
    assert terminal.text.count(ITS_OWN_SCREEN) == terminal.text.count(THE_SCREEN_BEFORE) == 1
    assert "\x1b[?25h" in terminal.text.rpartition(THE_SCREEN_BEFORE)[0]


def test_watch_that_is_stopped_leaves_the_terminal_until_it_goes_on(
    assistant: CommandLine,
) -> None:
    assistant("report", "backup", "idle")
    assistant.environment["TERM"] = "xterm-256color"
    terminal = Terminal(assistant, "status", "--watch")
    eventually(lambda: "backup" in terminal.plain, "the board")
    process = psutil.Process(terminal.process.pid)
    process.send_signal(signal.SIGTSTP)
    eventually(lambda: process.status() == psutil.STATUS_STOPPED, "stopped")
    eventually(lambda: THE_SCREEN_BEFORE in terminal.text, "the screen before")
    process.send_signal(signal.SIGCONT)
    assistant("report", "backup", "running", "after the stop")
    terminal.wait_for("after the stop")
    process.send_signal(signal.SIGINT)
    assert terminal.finish() == 130


@pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux")
def test_watch_on_a_terminal_is_redrawn_in_place(assistant: CommandLine, tmp_path: Path) -> None:
    assistant("report", "backup", "running", "the disk")
    socket = Path(f"/tmp/assistant-tmux-{uuid4().hex[:8]}")
    tmux = ["tmux", "-S", str(socket), "-f", "/dev/null"]
    environment = [f"-e{name}={value}" for name, value in assistant.environment.items()]
    command = assistant.command("status", "--watch")
    subprocess.run(
        [*tmux, "new-session", "-d", "-x", "100", "-y", "20", *environment, *command],
        check=True,
        env=assistant.environment,
    )

    def screen() -> str:
        command = [*tmux, "capture-pane", "-p", "-S", "-"]
        return subprocess.run(command, check=False, capture_output=True).stdout.decode()

    try:
        eventually(lambda: "running" in screen() and "the disk" in screen(), "running")
        assistant("report", "backup", "idle", "done")
        eventually(lambda: "idle" in screen() and "done" in screen(), "idle")
        last = screen()
    finally:
        subprocess.run([*tmux, "kill-server"], check=True)
        socket.unlink(missing_ok=True)
    assert "running" not in last
    assert (last.count("AGENT"), last.count("backup"), last.count("messages:")) == (1, 1, 1)
