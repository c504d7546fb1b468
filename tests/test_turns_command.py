"""`assistant turns ls` and `show`: what the agents did, as it is kept."""

from __future__ import annotations

import json
import os
import re
from typing import Any

import psycopg
import pytest

from .conftest import CommandLine
from .terminals import Terminal

UTC_TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z"
HOSTILE = "\x1b[31mred\x9b0m \u202etxet over\rwritten [bold]x[/bold] \u00fc"
SHOWN = r"\x1b[31mred\x9b0m \u202etxet over\rwritten [bold]x[/bold] " + "\u00fc"
SHOWN_IN_JSON = r"\u001b[31mred\u009b0m \u202etxet over\rwritten [bold]x[/bold] " + "\u00fc"


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


def test_nothing_is_said_where_the_reader_has_left(kept: CommandLine) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = kept.start("turns", "ls", stdout=writing)
    os.close(writing)
    assert process.stderr is not None
    assert (process.wait(timeout=20), process.stderr.read()) == (141, "")
