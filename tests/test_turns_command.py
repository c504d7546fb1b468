"""`assistant turns`: what the agents did, as it is kept; a turn is ended, or tried again."""

from __future__ import annotations

import asyncio
import json
import os
import re
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
from .terminals import Terminal

UTC_TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z"
HOSTILE = "\x1b[31mred\x9b0m \u202etxet over\rwritten [bold]x[/bold] \u00fc"
SHOWN = r"\x1b[31mred\x9b0m \u202etxet over\rwritten [bold]x[/bold] " + "\u00fc"
SHOWN_IN_JSON = r"\u001b[31mred\u009b0m \u202etxet over\rwritten [bold]x[/bold] " + "\u00fc"
IDLE = {"status": "idle", "detail": None}
CANCELLED = "cancelled on request"


@pytest.fixture
def hold(tmp_path: Path) -> Hold:
    return Hold(tmp_path)


@pytest.fixture
def kept(assistant: CommandLine, sql: psycopg.Connection[Any]) -> CommandLine:
    """The command line on a database with a turn of each kind."""
    sql.execute("""
        INSERT INTO assistant.turns (agent, trigger, conversation, token, model, outcome, error,
            started_at, ended_at, requests, input_tokens, output_tokens, cost_usd) VALUES
        ('conversation', 'message', 'main', 1, 'm', 'done', NULL,
            '2026-11-23T10:00:00Z', '2026-11-23T10:01:02.5Z', 2, 1200, 34, 0.0000123),
        ('heartbeat', 'timer', 'main', 1, 'm', 'silent', NULL,
            '2026-11-23T10:00:00Z', '2026-11-23T10:00:00Z', 0, 0, 0, NULL),
        ('conversation', 'message', 'work', 1, 'm', 'failed', E'first\\tline\\nsecond line',
            '2026-11-23T10:00:00Z', '2026-11-23T10:00:01Z', 0, 0, 0, NULL),
        ('heartbeat', 'reminder', NULL, 1, 'none', 'timed_out', 'late',
            '2026-11-23T10:00:00Z', '2026-11-23T10:00:01Z', 0, 0, 0, NULL),
        ('conversation', 'message', 'main', 1, 'm', 'interrupted', 'gone',
            '2026-11-23T10:00:00Z', '2026-11-23T10:00:01Z', 0, 0, 0, NULL),
        ('conversation', 'message', 'main', 1, 'm', 'running', NULL, now(), NULL, 0, 0, 0, NULL)
    """)
    return assistant


def put(sql: psycopg.Connection[Any], turn: int, text: str, state: str) -> None:
    sql.execute(
        "INSERT INTO assistant.messages (id, conversation, role, content, source, state, turn_id, "
        "attempts, error) VALUES (gen_random_uuid(), 'main', 'user', %s, 'cli', %s, %s, 3, 'no')",
        (text, state, turn),
    )


def step(sql: psycopg.Connection[Any], turn: int, position: int, kind: str, content: str) -> None:
    sql.execute(
        "INSERT INTO assistant.turn_steps (turn_id, position, kind, content) "
        "VALUES (%s, %s, %s, %s)",
        (turn, position, kind, content),
    )


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


# What is kept


def test_in_a_pipe_a_line_a_turn_newest_last(kept: CommandLine) -> None:
    done = kept("turns", "ls")
    assert (done.code, done.err) == (0, "")
    table = [line.split("\t") for line in done.out.splitlines()]
    assert [row[:5] for row in table] == [
        ["1", "conversation", "message", "main", "done"],
        ["2", "heartbeat", "timer", "main", "silent"],
        ["3", "conversation", "message", "work", "failed"],
        ["4", "heartbeat", "reminder", "", "timed_out"],
        ["5", "conversation", "message", "main", "interrupted"],
        ["6", "conversation", "message", "main", "running"],
    ]
    assert table[0][5:] == [
        "2026-11-23T10:00:00.000Z",
        "62.500",
        "m",
        "1200",
        "34",
        "0.0000123",
        "",
    ]
    assert [row[11] for row in table] == ["", "", r"first\tline", "late", "gone", ""]


def test_json_is_one_document_in_the_documented_shape(kept: CommandLine) -> None:
    done = kept("turns", "ls", "--json")
    assert (done.code, done.err, done.out.count("\n")) == (0, "", 1)
    document = json.loads(done.out)
    assert document["schema"] == 1
    assert document["turns"][0] == {
        "id": 1,
        "agent": "conversation",
        "trigger": "message",
        "conversation": "main",
        "outcome": "done",
        "model": "m",
        "started_at": "2026-11-23T10:00:00.000Z",
        "ended_at": "2026-11-23T10:01:02.500Z",
        "cancelled_at": None,
        "seconds": 62.5,
        "requests": 2,
        "input_tokens": 1200,
        "output_tokens": 34,
        "cost_usd": 0.0000123,
        "error": None,
    }
    assert document["turns"][2]["error"] == "first\tline\nsecond line"
    assert document["turns"][5]["ended_at"] is None


def test_count_agent_and_failed_choose_the_turns(kept: CommandLine) -> None:
    def chosen(*options: str) -> list[int]:
        turns = json.loads(kept("turns", "ls", "--json", *options).out)["turns"]
        return [turn["id"] for turn in turns]

    assert chosen("-n", "2") == [5, 6]
    assert chosen("--agent", "heartbeat") == [2, 4]
    assert chosen("--failed") == [3, 4, 5]
    assert chosen("--failed", "--agent", "conversation", "-n", "1") == [5]
    assert chosen("--agent", "nobody") == []


def test_without_turns_the_answer_is_empty(assistant: CommandLine) -> None:
    done = assistant("turns", "ls")
    assert (done.code, done.out, done.err) == (0, "", "")
    assert Terminal(assistant, "turns", "ls").finish_plain() == ""
    assert json.loads(assistant("turns", "ls", "--json").out) == {"schema": 1, "turns": []}


def test_a_turn_is_shown_with_its_messages_and_its_steps_digit_for_digit(
    kept: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    put(sql, 3, "one\ntwo", "failed")
    put(sql, 1, "of another turn", "answered")
    contents = [f'{{"n": 1.10, "big": {"9" * 30}}}', f'"{"ü" * 3}\x7f\u202e\\t\\u001b"', "[]"]
    for position, content in enumerate(contents, start=1):
        step(sql, 3, position, ("request", "tool_call", "response")[position - 1], content)
    step(sql, 1, 1, "request", '"of another turn"')
    stored = [row[0] for row in sql.execute("SELECT content::text FROM assistant.turn_steps")][:3]

    done = kept("turns", "show", "3", "--json")
    assert (done.code, done.err, done.out.count("\n")) == (0, "", 1)
    assert all(f'"content": {content}}}' in done.out for content in stored)
    document = json.loads(done.out)
    assert document.keys() == {"schema", "turn", "messages", "steps"}
    assert document["turn"]["error"] == "first\tline\nsecond line"
    (message,) = document["messages"]
    assert (message["content"], message["state"]) == ("one\ntwo", "failed")
    kinds = [(step["position"], step["kind"]) for step in document["steps"]]
    assert kinds == [(1, "request"), (2, "tool_call"), (3, "response")]
    assert all(re.fullmatch(UTC_TIME, step["at"]) for step in document["steps"])

    lines = [line.split("\t") for line in kept("turns", "show", "3").out.split("\n")]
    assert ["id", "3"] in lines
    assert ["error", r"first\tline\nsecond line"] in lines
    assert [line[2:] for line in lines if line[0] == "message"] == [
        ["main", "user", "failed", r"one\ntwo"]
    ]
    steps = [line for line in lines if line[0] == "step"]
    assert [line[4] for line in steps] == stored
    assert [(line[1], line[2]) for line in steps] == [(str(number), kind) for number, kind in kinds]


@pytest.mark.parametrize("command", ["show", "cancel", "retry"])
@pytest.mark.parametrize("turn", ["99", str(2**63 - 1)])
def test_a_turn_that_is_not_there_is_an_answer_of_its_own(
    kept: CommandLine, command: str, turn: str
) -> None:
    done = kept("turns", command, turn)
    assert (done.code, done.out) == (3, "")
    assert done.err == f"assistant: there is no turn {turn}; `assistant turns ls` lists them\n"


@pytest.mark.parametrize(
    "arguments",
    [
        *([command, bad] for command in ("show", "cancel", "retry") for bad in ("0", "-1", "x")),
        ["show", str(2**63)],
        ["show", ""],
        ["show", "1; DROP TABLE kv"],
        ["show"],
        ["retry", "1", "2"],
        ["ls", "-n", "0"],
        ["ls", "-n", "9" * 30],
        ["ls", "1"],
    ],
)
def test_what_is_no_turn_is_a_usage_error(assistant: CommandLine, arguments: list[str]) -> None:
    done = assistant("turns", *arguments)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)


def test_an_agent_that_is_not_text_is_bad_data(assistant: CommandLine) -> None:
    done = assistant("turns", "ls", "--agent", "\udcff")
    assert (done.code, done.out) == (65, "")
    assert done.err == "assistant: the agent is not valid UTF-8\n"


def test_on_a_terminal_turns_are_a_table_without_empty_columns(
    kept: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    head, *lines = Terminal(kept, "turns", "ls").finish_plain().splitlines()
    headings = "ID AGENT TRIGGER CONVERSATION OUTCOME STARTED TIME MODEL IN OUT COST ERROR"
    assert head.split() == headings.split(" ")
    assert re.match(r"1 +conversation +message +main +done +\d{4}(-\d\d){2} .* 1m2s +m", lines[0])
    head, *_ = Terminal(kept, "turns", "ls", "--agent", "heartbeat").finish_plain().splitlines()
    assert head.split()[-2:] == ["MODEL", "ERROR"]


def test_on_a_terminal_turns_steer_nothing(
    assistant: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    sql.execute(
        "INSERT INTO assistant.turns (agent, trigger, conversation, token, model, outcome, error) "
        "VALUES (%(text)s, %(text)s, %(text)s, 1, %(text)s, 'failed', %(text)s)",
        {"text": HOSTILE},
    )
    put(sql, 1, HOSTILE, "failed")
    step(sql, 1, 1, "request", json.dumps({"text": HOSTILE, "digits": 0}))
    listed = Terminal(assistant, "turns", "ls").finish_plain()
    shown = Terminal(assistant, "turns", "show", "1").finish_plain()
    document = Terminal(assistant, "turns", "show", "1", "--json").finish_plain()
    for text in (listed, shown, document):
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", text)
    assert listed.splitlines()[1].count(SHOWN) == 5
    assert (shown.count(SHOWN), shown.count(SHOWN_IN_JSON)) == (6, 1)
    assert '\n    "digits": 0' in shown
    assert SHOWN_IN_JSON in document


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


def test_nothing_is_said_where_the_reader_has_left(kept: CommandLine) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = kept.start("turns", "ls", stdout=writing)
    os.close(writing)
    assert process.stderr is not None
    assert (process.wait(timeout=20), process.stderr.read()) == (141, "")
