"""`assistant turns cancel` and `retry`: a turn is ended at once, or its messages tried again."""

from __future__ import annotations

import asyncio
import json
import signal
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from assistant_cli.store import inbox
from assistant_cli.store.database import Database

from .conftest import CommandLine, eventually
from .hosting import Hold, hosting, living, rows, until, until_equal
from .test_turns_command import put

IDLE = {"status": "idle", "detail": None}
CANCELLED = "cancelled on request"


def turn_of(sql: psycopg.Connection[Any], agent: str = "conversation") -> int:
    """The turn that an agent executes, once there is one."""
    running = "SELECT id FROM assistant.turns WHERE outcome = 'running' AND agent = %s"
    eventually(lambda: sql.execute(running, (agent,)).fetchone(), "a turn")
    ((turn,),) = sql.execute(running, (agent,)).fetchall()
    return int(turn)


def outcome_of(sql: psycopg.Connection[Any], turn: int) -> tuple[Any, ...]:
    """How a turn ended, once it has."""
    query = "SELECT outcome, error FROM assistant.turns WHERE id = %s AND outcome <> 'running'"
    eventually(lambda: sql.execute(query, (turn,)).fetchone(), "its end")
    ((outcome, error),) = sql.execute(query, (turn,)).fetchall()
    return outcome, error


def messages(sql: psycopg.Connection[Any]) -> list[tuple[Any, ...]]:
    """What users said, and what became of it."""
    query = (
        "SELECT content, state, attempts, error FROM assistant.messages "
        "WHERE role = 'user' ORDER BY position"
    )
    return sql.execute(query).fetchall()


def until_idle(assistant: CommandLine) -> None:
    def idle() -> bool:
        board = json.loads(assistant("kv", "get", "status_board").out)
        return bool(board["conversation"] == board["heartbeat"] == IDLE)

    eventually(idle, "an idle board")


# Cancelling


def test_a_cancelled_turn_ends_at_once_and_the_agent_goes_on(
    assistant: CommandLine, sql: psycopg.Connection[Any], hold: Hold
) -> None:
    hold.close()
    run = assistant.start_run("--model", hold.model, "--heartbeat", "off")
    waiting = assistant.start("send", "--wait", "one")
    turn = turn_of(sql)
    eventually(lambda: hold.asked == ["one"], "the question")
    assistant("send", "elsewhere", "-c", "work")
    done = assistant("turns", "cancel", str(turn))
    assert (done.code, done.out) == (0, "")
    assert done.err == f"assistant: turn {turn} was asked to end\n"
    assert outcome_of(sql, turn) == ("interrupted", CANCELLED)
    assert waiting.wait(timeout=20) == 6
    assert waiting.communicate()[1].endswith(f" in 1 attempt: {CANCELLED}\n")

    hold.open()
    assert assistant("send", "--wait", "two").out == "re: two\n"
    until_idle(assistant)
    assert [row[:2] for row in messages(sql)] == [
        ("one", "failed"),
        ("elsewhere", "answered"),
        ("two", "answered"),
    ]
    assert messages(sql)[0] == ("one", "failed", 1, CANCELLED)
    assert hold.asked.count("one") == 1
    assert run.poll() is None
    said = sql.execute("SELECT status FROM assistant.board_events").fetchall()
    assert ("failed",) not in said


def test_the_command_of_a_cancelled_turn_is_ended_in_order_with_all_it_started(
    assistant: CommandLine, sql: psycopg.Connection[Any], tmp_path: Path
) -> None:
    # It takes longer to end than between two looks at what was asked for.
    model = (
        f"command:cd {tmp_path}; trap 'sleep 1.5; touch tidy; exit' TERM; "
        "sh -c 'trap \"\" TERM; while :; do sleep 0.1; done' & echo $$ > group; wait"
    )
    assistant.start_run("--model", model, "--heartbeat", "off")
    assistant("send", "hello")
    eventually(lambda: (tmp_path / "group").exists() and (tmp_path / "group").read_text(), "it")
    assert assistant("turns", "cancel", str(turn_of(sql))).code == 0
    eventually(lambda: not living({int((tmp_path / "group").read_text())}), "the end of all")
    assert (tmp_path / "tidy").exists()
    until_idle(assistant)
    assert [row[1] for row in messages(sql)] == ["failed"]


def test_a_request_that_nothing_announced_is_found_soon(
    assistant: CommandLine, sql: psycopg.Connection[Any], hold: Hold
) -> None:
    hold.close()
    assistant.start_run("--model", hold.model)
    assistant("send", "one")
    turn = turn_of(sql)
    eventually(lambda: hold.asked, "the question")
    sql.execute("UPDATE assistant.turns SET cancelled_at = now() WHERE id = %s", (turn,))
    assert outcome_of(sql, turn) == ("interrupted", CANCELLED)
    took = sql.execute(
        "SELECT ended_at - cancelled_at < interval '3 s' FROM assistant.turns WHERE id = %s",
        (turn,),
    )
    assert took.fetchone() == (True,)


async def test_a_turn_of_one_agent_is_cancelled_without_the_other(
    database: Database, assistant: CommandLine, hold: Hold
) -> None:
    hold.close()
    running = "SELECT agent, id FROM assistant.turns WHERE outcome = 'running' ORDER BY agent"
    message = await inbox.put_message(database, "one", conversation="main")
    async with hosting(database, hold.model, agents=("conversation",)):
        await until(lambda: rows(database, running), "a turn")
        other = Database(database.dsn)
        ((_, turn),) = await rows(database, running)
        await rows(
            database,
            "INSERT INTO assistant.turns (agent, trigger, token, model) "
            "VALUES ('heartbeat', 'timer', 0, 'm')",
        )
        (tick,) = await rows(database, "SELECT id FROM assistant.turns WHERE agent = 'heartbeat'")
        done = await asyncio.to_thread(assistant, "turns", "cancel", str(tick))
        assert done.code == 0
        assert "no process ran turn" in done.err
        hold.open()
        assert await inbox.wait_for_reply(other, message) == "re: one"
        await other.close()
    outcomes = "SELECT id, outcome FROM assistant.turns ORDER BY id"
    assert await rows(database, outcomes) == [(turn, "done"), (tick, "interrupted")]


async def test_a_heartbeat_that_reflects_is_cancelled_too(
    database: Database, assistant: CommandLine, hold: Hold
) -> None:
    hold.close()
    await inbox.put_message(database, "one", conversation="main")
    await rows(database, "UPDATE assistant.messages SET state = 'answered'")
    async with hosting(database, hold.model, heartbeat=timedelta(hours=1)) as run:
        await until(lambda: asyncio.to_thread(lambda: hold.asked), "the question")
        (turn,) = await rows(database, "SELECT id FROM assistant.turns")
        assert (await asyncio.to_thread(assistant, "turns", "cancel", str(turn))).code == 0
        ended = "SELECT outcome, error FROM assistant.turns"
        await until_equal(database, ended, [("interrupted", CANCELLED)])
        board = "SELECT value -> 'heartbeat' FROM kv WHERE key = 'status_board'"
        await until_equal(database, board, [IDLE])
        assert not run.done()


async def test_an_agent_that_is_stopped_is_not_taken_for_a_cancelled_turn(
    database: Database, hold: Hold
) -> None:
    hold.close()
    await inbox.put_message(database, "one", conversation="main")
    async with hosting(database, hold.model):
        await until(lambda: asyncio.to_thread(lambda: hold.asked), "the question")
    turns = await rows(database, "SELECT outcome, error FROM assistant.turns")
    assert turns == [("interrupted", "stopped before it was finished")]
    state = "SELECT state, attempts, error FROM assistant.messages"
    assert await rows(database, state) == [("waiting", 0, None)]


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_what_was_cancelled_is_not_answered_by_the_next_process(
    assistant: CommandLine, sql: psycopg.Connection[Any], hold: Hold, end: signal.Signals
) -> None:
    hold.close()
    run = assistant.start_run("--model", hold.model, "--drain", "1ms")
    assistant("send", "one")
    turn = turn_of(sql)
    eventually(lambda: hold.asked, "the question")
    run.send_signal(signal.SIGSTOP)
    assert assistant("turns", "cancel", str(turn)).code == 0
    run.send_signal(end)
    run.send_signal(signal.SIGCONT)
    run.wait(timeout=20)
    hold.open()
    assistant.start_run("--model", hold.model)
    assert assistant("send", "--wait", "two").out == "re: two\n"
    assert messages(sql) == [("one", "failed", 1, CANCELLED), ("two", "answered", 1, None)]
    assert outcome_of(sql, turn)[0] == "interrupted"


def test_a_turn_that_has_ended_is_not_cancelled(
    kept: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    for turn, outcome in ((1, "done"), (2, "silent"), (5, "interrupted")):
        done = kept("turns", "cancel", str(turn))
        assert (done.code, done.out) == (5, "")
        assert done.err == f"assistant: turn {turn} has ended already: {outcome}\n"
    asked = "SELECT count(*) FROM assistant.turns WHERE cancelled_at IS NOT NULL"
    assert sql.execute(asked).fetchone() == (0,)


def test_messages_that_a_turn_failed_on_are_given_up(
    kept: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    sql.execute(
        "INSERT INTO assistant.messages (id, conversation, role, content, source, state, turn_id, "
        "error) VALUES (gen_random_uuid(), 'work', 'user', 'hello', 'cli', 'failed', 3, 'no')"
    )
    assert json.loads(kept("status", "--json").out)["inbox"]["failed"] == 1
    done = kept("turns", "cancel", "3")
    assert (done.code, done.out) == (0, "")
    assert done.err == "assistant: the failed messages of turn 3 are given up\n"
    assert json.loads(kept("status", "--json").out)["inbox"]["failed"] == 0
    assert messages(sql) == [("hello", "failed", 0, CANCELLED)]
    assert kept("turns", "cancel", "3").code == 5
    assert kept("turns", "retry", "3").code == 0


def test_asking_twice_is_no_mistake(kept: CommandLine, sql: psycopg.Connection[Any]) -> None:
    sql.execute(
        "INSERT INTO assistant.leases SELECT agent, token, 'elsewhere', 1, 'p', now(), "
        "now() + interval '1 minute' FROM assistant.turns WHERE id = 6"
    )
    asked = "SELECT cancelled_at FROM assistant.turns WHERE id = 6"
    for _ in range(2):
        done = kept("turns", "cancel", "6")
        assert (done.code, done.err) == (0, "assistant: turn 6 was asked to end\n")
    assert sql.execute(asked).fetchone() != (None,)


# Trying again


def test_the_failed_messages_of_a_turn_are_tried_again(
    assistant: CommandLine, sql: psycopg.Connection[Any], hold: Hold
) -> None:
    hold.close()
    run = assistant.start_run("--model", hold.model)
    assistant("send", "one")
    first = turn_of(sql)
    eventually(lambda: hold.asked, "the question")
    assistant("turns", "cancel", str(first))
    assert outcome_of(sql, first)[0] == "interrupted"
    hold.open()
    done = assistant("turns", "retry", str(first))
    assert (done.code, done.out, done.err) == (0, "", "assistant: 1 message waits again\n")
    eventually(lambda: messages(sql) == [("one", "answered", 1, None)], "the answer")
    done = assistant("turns", "retry", str(first))
    assert (done.code, done.out) == (5, "")
    assert done.err == f"assistant: turn {first} (interrupted) has no failed messages\n"
    assert run.poll() is None


def test_only_what_failed_waits_again_as_if_never_tried(
    kept: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    for text, state in (("a", "failed"), ("b", "failed"), ("c", "answered"), ("d", "waiting")):
        put(sql, 3, text, state)
    put(sql, 5, "e", "failed")
    sql.execute("UPDATE assistant.messages SET reported_at = now()")
    assert kept("turns", "retry", "3").err == "assistant: 2 messages wait again\n"
    assert messages(sql) == [
        ("a", "waiting", 0, None),
        ("b", "waiting", 0, None),
        ("c", "answered", 3, "no"),
        ("d", "waiting", 3, "no"),
        ("e", "failed", 3, "no"),
    ]
    # Should they fail again, the heartbeat says so again.
    unreported = "SELECT content FROM assistant.messages WHERE reported_at IS NULL ORDER BY 1"
    assert sql.execute(unreported).fetchall() == [("a",), ("b",)]
    assert [kept("turns", "retry", turn).code for turn in ("1", "3", "6")] == [5, 5, 5]


def test_two_who_retry_at_once_do_it_once(kept: CommandLine, sql: psycopg.Connection[Any]) -> None:
    put(sql, 3, "a", "failed")
    both = [kept.start("turns", "retry", "3") for _ in range(2)]
    assert sorted(process.wait(timeout=20) for process in both) == [0, 5]
