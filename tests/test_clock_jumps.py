"""Clocks of hosts and of the database that jump by an hour, while everybody is at work."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from .conftest import CommandLine, eventually
from .faults.checker import check
from .faults.final import read_store
from .faults.history import History
from .password_server import set_up
from .postgres_server import PostgresServer, server_folder

LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
pytestmark = pytest.mark.skipif(not LIBRARIES, reason="needs libfaketime")

MODEL = "command:sed 's/^/re: /'"
HOUR = 3600
TICKS = "SELECT FROM assistant.turns WHERE agent = 'heartbeat' AND trigger = 'timer'"
SAID = "SELECT FROM assistant.messages WHERE content = 'tea'"
TOKENS = "SELECT DISTINCT token FROM assistant.leases"
NEXT_TICK = "SELECT value #>> '{}' FROM kv WHERE key = 'heartbeat_next_tick_at'"


class FalseClock:
    """The time of day of processes with an environment; their monotonic clock goes on."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "offset"
        self.jump_to(0)
        self.environment = {
            "LD_PRELOAD": str(LIBRARIES[0]),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }

    def jump_to(self, seconds: int) -> None:
        """Be so many seconds before the true time."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+d}\n")
        new.chmod(0o644)
        new.rename(self._file)


@pytest.fixture
def clock(tmp_path: Path) -> FalseClock:
    return FalseClock(tmp_path)


@pytest.fixture
def elsewhere(assistant: CommandLine, clock: FalseClock) -> Iterator[CommandLine]:
    """The command line on a host whose clock jumps."""
    command_line = CommandLine({**assistant.environment, **clock.environment})
    yield command_line
    command_line.end_all()


def logged(
    assistant: CommandLine, name: str, *arguments: str
) -> tuple[subprocess.Popen[str], Path]:
    """Start `run` with a log that can be read at any time."""
    log = Path(assistant.environment["HOME"], f"{name}.log")
    with log.open("w") as file:
        process = assistant.start("run", "--model", MODEL, *arguments, stderr=file)
    eventually(lambda: re.search("hosting|standing by", log.read_text()), "the start")
    return process, log


def count(sql: psycopg.Connection[Any], query: str) -> int:
    return sql.execute(query.encode()).rowcount


def stir(assistant: CommandLine, sql: psycopg.Connection[Any], done: Any) -> None:
    """Wake the heartbeat agent, which looks at the clock every 30 s only, until it has acted."""

    def acted() -> bool:
        sql.execute(b"UPDATE assistant.schedules SET due_at = due_at + interval '1 ms'")
        sql.execute(b"NOTIFY assistant_messages")
        return bool(done())

    eventually(acted, "what the clock brings about")


@pytest.mark.parametrize("seconds", [HOUR + 60, -HOUR - 60])
def test_a_run_whose_hosts_clock_jumps_there_and_back_works_on(
    assistant: CommandLine,
    elsewhere: CommandLine,
    clock: FalseClock,
    sql: psycopg.Connection[Any],
    dsn: str,
    seconds: int,
) -> None:
    run, _ = logged(elsewhere, "run", "--heartbeat", "30m")
    other, _ = logged(assistant, "other", "--standby")
    tokens = sql.execute(TOKENS).fetchall()
    assert assistant("schedule", "add", "--every", "1h", "tea").code == 0
    assert assistant("send", "--wait", "true").out == "re: true\n"
    eventually(lambda: count(sql, TICKS) == 1, "the first tick")

    clock.jump_to(seconds)
    assert elsewhere("send", "--wait", "false").out == "re: false\n"
    check_times(elsewhere)
    if seconds > 0:
        stir(assistant, sql, lambda: count(sql, TICKS) == 2 and count(sql, SAID) == 1)
    else:
        stir(assistant, sql, lambda: due_within(sql, seconds, timedelta(minutes=31)))

    clock.jump_to(0)
    assert assistant("send", "--wait", "true again").out == "re: true again\n"
    stir(assistant, sql, lambda: due_within(sql, 0, timedelta(minutes=31)))
    check_times(elsewhere)
    # Back at the true time, a tick and a message of an hour ago are not made again; one that was
    # planned by a clock that was slow is due.
    assert count(sql, TICKS) == 2
    assert count(sql, SAID) == (1 if seconds > 0 else 0)
    assert sql.execute(TOKENS).fetchall() == tokens
    assert [run.poll(), other.poll()] == [None, None]
    run.terminate()
    assert run.wait(20) == 0
    # The one that stood by may have taken over, and be in the middle of a turn.
    other.terminate()
    assert other.wait(20) == 0
    assert_right(dsn)


def due_within(sql: psycopg.Connection[Any], offset: int, limit: timedelta) -> bool:
    """Whether the next tick comes soon, by a clock that is off by so much."""
    ((text,),) = sql.execute(NEXT_TICK).fetchall()
    now = datetime.now(UTC) + timedelta(seconds=offset)
    return datetime.fromisoformat(text) <= now + limit


def check_times(assistant: CommandLine) -> None:
    """What `status` tells are the times of the database, and the leases hold."""
    document = json.loads(assistant("status", "--json").out)
    times = [document["now"], *(agent["since"] for agent in document["agents"])]
    for time in times:
        age = datetime.now(UTC) - datetime.fromisoformat(time)
        assert abs(age) < timedelta(minutes=5), document
    assert [agent["live"] for agent in document["agents"]] == [True, True]


def assert_right(dsn: str) -> None:
    final = read_store(dsn)
    assert check(History([], []), final) == []


@pytest.fixture
def server_clock() -> Iterator[tuple[FalseClock, str]]:
    """A database whose clock jumps, and its URL."""
    with server_folder() as folder:
        (folder / "clock").mkdir(mode=0o755)
        clock = FalseClock(folder / "clock")
        server = PostgresServer(folder, "data", clock.environment)
        server.create()
        try:
            server.start()
            yield clock, set_up(server).url()
        finally:
            server.stop()


@pytest.fixture
def far(server_clock: tuple[FalseClock, str], environment: dict[str, str]) -> Iterator[CommandLine]:
    """The command line on that database."""
    command_line = CommandLine({**environment, "ASSISTANT_DATABASE_URL": server_clock[1]})
    yield command_line
    command_line.end_all()


def test_a_databases_clock_that_jumps_leaves_one_holder_and_loses_nothing(
    server_clock: tuple[FalseClock, str], far: CommandLine
) -> None:
    clock, url = server_clock
    logged(far, "one", "--standby", "--heartbeat", "off")
    logged(far, "other", "--standby", "--heartbeat", "off")
    for number, offset in enumerate([HOUR, 0, -HOUR, 0]):
        assert far("send", "--wait", f"before {number}").code == 0
        clock.jump_to(offset)
        assert far("send", "--wait", f"after {number}").code == 0
        # One that lost its lease has left; its supervisor starts it again.
        logged(far, f"again {number}", "--standby", "--heartbeat", "off")
    eventually(lambda: far("status", "--check", "conversation").code == 0, "a live holder")
    with psycopg.connect(url) as sql:
        ((unanswered,),) = sql.execute(
            "SELECT count(*) FROM assistant.messages WHERE role = 'user' AND state <> 'answered'"
        ).fetchall()
    assert unanswered == 0
    assert_right(url)


def test_a_holder_that_is_gone_is_stale_although_the_databases_clock_was_set_back(
    server_clock: tuple[FalseClock, str], far: CommandLine
) -> None:
    clock, url = server_clock
    run, _ = logged(far, "run")
    assert far("send", "--wait", "before").out == "re: before\n"
    assert far("status", "--check").code == 0
    # To others it is as one whose host is gone.
    os.kill(run.pid, signal.SIGSTOP)
    clock.jump_to(-HOUR)
    eventually(lambda: far("status", "--check").code == 4, "stale")
    next_run, _ = logged(far, "next", "--standby")
    assert far("send", "--wait", "after").out == "re: after\n"
    os.kill(run.pid, signal.SIGCONT)
    assert run.wait(20) == 5
    assert next_run.poll() is None
    assert_right(url)
