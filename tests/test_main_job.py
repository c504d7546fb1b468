"""The main job on real input: `run` hosts the agents, the shell feeds them, the board is true."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psycopg
import pytest

from .conftest import CommandLine, eventually
from .hosting import Hold


def _board(assistant: CommandLine) -> dict[str, dict[str, str | None]]:
    board: dict[str, dict[str, str | None]] = json.loads(assistant("kv", "get", "status_board").out)
    return board


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """A model that answers in capitals, once the test opens its gate."""
    path = tmp_path / "gate"
    os.mkfifo(path)
    yield path
    # The command of a run that was killed still waits there; opened for both, it never blocks.
    os.close(os.open(path, os.O_RDWR))


def _slow_model(gate: Path) -> str:
    return f"command:cat {gate} >/dev/null; tr a-z A-Z"


def _answering(assistant: CommandLine) -> bool:
    return _board(assistant)["conversation"]["status"] == "running"


def test_a_message_is_answered_by_the_model(assistant: CommandLine) -> None:
    assistant.start_run("--model", "command:tr a-z A-Z")
    done = assistant("send", "--wait", "hello")
    assert (done.code, done.out, done.err) == (0, "HELLO\n", "")
    idle = {"status": "idle", "detail": None}
    eventually(lambda: _board(assistant) == {"conversation": idle, "heartbeat": idle})
    assert assistant("kv", "get", "status_board", "heartbeat.status", "-r").out == "idle\n"
    assert assistant("status", "--check").code == 0


def test_of_twenty_runs_at_once_one_runs_and_the_others_name_it(assistant: CommandLine) -> None:
    runs = [assistant.start("run") for _ in range(20)]

    def have_left(count: int) -> bool:
        return sum(run.poll() is not None for run in runs) >= count

    # One after the other, as twenty starts take long on a busy machine.
    for count in range(1, 20):
        eventually(partial(have_left, count), f"{count} have left")
    (winner,) = [run for run in runs if run.poll() is None]
    losers = [run for run in runs if run is not winner]
    assert {run.returncode for run in losers} == {5}
    for run in losers:
        error = run.communicate()[1].splitlines()[-1]
        assert f"pid {winner.pid}, since " in error
        assert "is already held by host " in error


def test_after_kill_9_in_a_turn_status_is_stale_and_the_next_run_answers_once(
    assistant: CommandLine, dsn: str, gate: Path
) -> None:
    first = assistant.start_run("--model", _slow_model(gate))
    assistant("send", "hello")
    eventually(lambda: _answering(assistant), "a turn")
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert assistant("status", "--check").code == 4
    assert _answering(assistant)

    assistant.start_run("--model", "command:tr a-z A-Z")
    with psycopg.connect(dsn, autocommit=True) as connection:

        def count(query: str) -> object:
            return connection.execute(query.encode()).fetchone()

        answered = "SELECT count(*) FROM assistant.messages WHERE state = 'answered'"
        eventually(lambda: count(answered) == (1,), "the answer")
        assert count("SELECT count(*) FROM assistant.messages WHERE role = 'assistant'") == (1,)
        # The heartbeat may have had a thought under way as well.
        ours = "WHERE agent = 'conversation' AND outcome = 'interrupted'"
        assert count(f"SELECT count(*) FROM assistant.turns {ours}") == (1,)
    eventually(lambda: _board(assistant)["conversation"] == {"status": "idle", "detail": None})
    assert assistant("status", "--check").code == 0


def test_on_sigterm_the_turn_finishes_and_the_board_is_idle(
    assistant: CommandLine, gate: Path
) -> None:
    run = assistant.start_run("--model", _slow_model(gate))
    waiting = assistant.start("send", "--wait", "hello")
    eventually(lambda: _answering(assistant), "a turn")
    run.send_signal(signal.SIGTERM)
    gate.write_text("go")
    assert waiting.communicate()[0] == "HELLO\n"
    assert run.wait(timeout=20) == 0
    assert _board(assistant)["conversation"] == {"status": "idle", "detail": None}
    done = json.loads(assistant("status", "--json").out)
    assert [agent["holder"] for agent in done["agents"]] == [None, None]
    assert done["heartbeat"]["next_tick_at"] is None


def test_the_run_carries_on_when_its_connections_are_ended(
    assistant: CommandLine, dsn: str
) -> None:
    assistant.start_run("--model", "command:tr a-z A-Z")
    for number in range(3):
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        assert assistant("send", "--wait", f"again {number}").out == f"AGAIN {number}\n"


def test_on_a_fresh_machine_both_agents_are_up_soon(
    private_home: Path, environment: dict[str, str]
) -> None:
    assistant = CommandLine({**environment, "ASSISTANT_HOME": str(private_home / "new")})
    started = time.monotonic()
    try:
        assistant.start_run()
        idle = ("wait", "conversation", "heartbeat", "--for", "idle", "--timeout", "20s")
        assert assistant(*idle).code == 0
        done = assistant("status", "--json")
        assert time.monotonic() - started < 20
        agents = json.loads(done.out)["agents"]
        assert [(a["agent"], a["live"]) for a in agents] == [
            ("conversation", True),
            ("heartbeat", True),
        ]
    finally:
        assistant.end_all()
        assert assistant("db", "stop").code == 0


def test_all_that_runs_outlives_a_restart_of_the_database(
    private_home: Path, environment: dict[str, str]
) -> None:
    assistant = CommandLine({**environment, "ASSISTANT_HOME": str(private_home)})
    run = assistant.start_run("--model", "command:tr a-z A-Z")
    status = assistant.start("status", "--watch", "backup", stderr=subprocess.DEVNULL)
    assistant("kv", "set", "k", "null")
    watch = assistant.start("kv", "watch", "k", stderr=subprocess.DEVNULL)
    assert status.stdout is not None
    assert watch.stdout is not None
    try:
        status.stdout.readline()
        assert watch.stdout.readline() == "null\n"
        for number in range(2):
            assert assistant("db", "stop").code == 0
            assert assistant("kv", "set", "k", str(number)).code == 0
            assert assistant("report", "backup", "running", str(number)).code == 0
            assert assistant("send", "--wait", f"again {number}").out == f"AGAIN {number}\n"
            assert watch.stdout.readline() == f"{number}\n"
            last = next(line for line in status.stdout if f'"detail": "{number}"' in line)
            assert json.loads(last)["agents"][0]["agent"] == "backup"
        eventually(lambda: assistant("status", "--check", "conversation", "heartbeat").code == 0)
        assert (run.poll(), status.poll(), watch.poll()) == (None, None, None)
    finally:
        assistant.end_all()


def test_a_board_that_somebody_overwrote_is_soon_right_again(assistant: CommandLine) -> None:
    assistant.start_run()
    assistant("report", "backup", "idle")
    idle = {"status": "idle", "detail": None}
    # Whichever agent changes first may be there alone for a while.
    check = ("status", "--check", "conversation", "heartbeat")
    for arguments in (["rm", "status_board"], ["set", "status_board", '{"heartbeat": 1}']):
        assert assistant("kv", *arguments).code == 0
        eventually(lambda: assistant(*check).code == 0, "the board")
        assert _board(assistant) == {"conversation": idle, "heartbeat": idle}


def test_a_tracked_command_stays_on_a_board_that_somebody_overwrote(
    assistant: CommandLine,
) -> None:
    tracking = assistant.start("track", "backup", "--detail", "copying", "--", "sleep", "60")
    check = ("wait", "backup", "--for", "running", "--timeout", "20s")
    assert assistant(*check).code == 0
    assert assistant("kv", "rm", "status_board").code == 0
    assert assistant(*check).code == 0
    assert _board(assistant) == {"backup": {"status": "running", "detail": "copying"}}
    tracking.terminate()
    assert tracking.wait(20) == 143


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_until_idle_that_a_signal_stops_does_not_say_that_all_is_done(
    assistant: CommandLine, tmp_path: Path, number: signal.Signals
) -> None:
    hold = Hold(tmp_path)
    hold.close()
    assistant("send", "hello")
    run = assistant.start("run", "--until-idle", "--model", hold.model, "--drain", "1s")
    eventually(lambda: hold.asked, "the question")
    run.send_signal(number)
    _, err = run.communicate(timeout=20)
    assert run.returncode == 128 + number
    assert "stopped by a signal, perhaps with something left to do" in err
    assert json.loads(assistant("status", "--json").out)["inbox"]["waiting"] == 1


def test_a_message_is_kept_once_under_its_id(assistant: CommandLine) -> None:
    first = assistant("send", "--id", "a", "hello")
    assert (first.code, assistant("send", "--id", "a", "hello").out) == (0, first.out)
    assert assistant("send", "--id", "a", "other").code == 5


def test_a_run_until_idle_obeys_what_waits_and_leaves(
    assistant: CommandLine,
) -> None:
    assistant("send", "/remember this")
    assert assistant("run", "--until-idle").code == 0
    assert assistant("kv", "ls", "memory/", "--values").out.endswith('\t"this"\n')


@pytest.mark.parametrize("heartbeat", ["0", "abc", "-1", ""])
def test_a_bad_heartbeat_is_a_usage_error(assistant: CommandLine, heartbeat: str) -> None:
    done = assistant("run", "--heartbeat", heartbeat)
    assert (done.code, done.out, len(done.err.splitlines())) == (2, "", 1)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["kv", "set", "k", "hello"], 65),
        (["kv", "set", "k", "NaN"], 65),
        (["kv", "set", "k", '{"a": 1, "a": 2}'], 65),
        (["kv", "set", "k", '"\\u0000"'], 65),
        (["kv", "set", "k", '"\\ud800"'], 65),
        (["kv", "set", "k", "[" * 101 + "]" * 101], 65),
        (["kv", "set", "n", "--bogus"], 2),
        (["kv", "set", "", "1"], 65),
        (["kv", "set", "x" * 513, "1"], 65),
        (["kv", "set", "a\nb", "1"], 65),
        (["kv", "get", "missing"], 3),
        (["kv", "get", "there", "missing"], 3),
        (["kv", "rm", "there", "missing"], 3),
        (["kv", "set", "there", "1", "--create"], 5),
        (["kv", "set", "there", "1", "--if-revision", "999999"], 5),
        (["kv", "incr", "there"], 65),
        (["status", "nobody"], 3),
        (["wait", "nobody", "--for", "idle", "--timeout", "200ms"], 124),
        (["report", "a", "busy"], 2),
        (["send", ""], 65),
        (["--database-url", "postgres//u:s3cret@h", "status"], 78),
        (["--database-url", "postgresql://u:s3cret@127.0.0.1:1/x", "status"], 69),
    ],
)
def test_bad_input_is_one_clear_line_and_changes_nothing(
    assistant: CommandLine, arguments: list[str], code: int
) -> None:
    assistant("kv", "set", "there", '{"a": 1}')
    before = assistant("kv", "export").out
    done = assistant(*arguments)
    assert (done.code, done.out, len(done.err.splitlines())) == (code, "", 1)
    assert "Traceback" not in done.err
    assert "s3cret" not in done.err
    assert assistant("kv", "export").out == before


def test_a_negative_number_is_a_value(assistant: CommandLine) -> None:
    assert assistant("kv", "set", "n", "-5").code == 0
    assert assistant("kv", "get", "n").out == "-5\n"


def test_an_unknown_database_is_a_configuration_error(assistant: CommandLine, dsn: str) -> None:
    done = assistant("--database-url", f"{dsn} dbname=nowhere", "status")
    assert (done.code, done.out) == (78, "")


def test_the_run_recovers_from_a_time_in_which_the_database_could_only_be_read(
    assistant: CommandLine, dsn: str
) -> None:
    assistant.start_run("--model", "command:tr a-z A-Z")
    others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    with psycopg.connect(dsn, autocommit=True) as connection:
        only_read = f'ALTER DATABASE "{connection.info.dbname}" SET default_transaction_read_only'
        connection.execute(f"{only_read} = on".encode())
        connection.execute(f"SELECT pg_terminate_backend(pid, 5000) {others}".encode())
        back = f"SELECT {others}".encode()
        eventually(lambda: connection.execute(back).rowcount >= 3, "its connections")
        connection.execute(f"{only_read} = off".encode())
    assert assistant("send", "--wait", "hello").out == "HELLO\n"
    eventually(lambda: assistant("status", "--check").code == 0)
