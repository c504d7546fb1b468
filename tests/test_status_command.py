"""`assistant status`: the board for people, for pipes and for programs."""

from __future__ import annotations

import asyncio
import json
import re
from datetime import datetime
from typing import Any

import psycopg
import pytest

from assistant_cli.store import leases
from assistant_cli.store.database import Database

from .conftest import CommandLine
from .terminals import Terminal, run_on_terminal

UTC_TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"


def hold(dsn: str, *agents: str) -> None:
    """Hold agents in the name of this process, which lives."""

    async def acquire() -> None:
        database = Database(dsn)
        await leases.acquire(database, agents)
        await database.close()

    asyncio.run(acquire())


def lapse(sql: psycopg.Connection[Any], agent: str) -> None:
    sql.execute(
        "UPDATE assistant.leases SET expires_at = now() - interval '1 s' WHERE agent = %s", (agent,)
    )


def agents_of(document: dict[str, Any]) -> dict[str, Any]:
    return {agent["agent"]: agent for agent in document["agents"]}


@pytest.fixture
def board(assistant: CommandLine, dsn: str) -> CommandLine:
    """One agent of each kind: live, stale, and one that nobody holds."""
    assistant("report", "heartbeat", "running", "writing a recipe")
    assistant("report", "conversation", "idle")
    assistant("report", "backup", "failed", "disk\tfull")
    hold(dsn, "heartbeat")
    hold(dsn, "conversation")
    with psycopg.connect(dsn, autocommit=True) as connection:
        lapse(connection, "conversation")
    return assistant


def test_in_a_pipe_it_is_a_line_an_agent_separated_by_tabs(board: CommandLine) -> None:
    done = board("status")
    assert (done.code, done.err) == (0, "")
    rows = [line.split("\t") for line in done.out.splitlines()]
    assert [row[:3] for row in rows] == [
        ["conversation", "idle", ""],
        ["heartbeat", "running", "writing a recipe"],
        ["backup", "failed", "disk\\tfull"],
    ]
    assert all(re.fullmatch(UTC_TIME, row[3]) for row in rows)
    assert [row[4] for row in rows] == ["stale", "live", "-"]
    assert [row[6].isdigit() for row in rows] == [True, True, False]


def test_json_is_one_document_on_one_line_in_the_documented_shape(board: CommandLine) -> None:
    done = board("status", "--json")
    assert (done.code, done.err, done.out.count("\n")) == (0, "", 1)
    document = json.loads(done.out)
    assert document["schema"] == 1
    assert document["inbox"]["waiting"] == 0
    agents = agents_of(document)
    holder = agents["heartbeat"].pop("holder")
    assert holder.keys() == {"host", "pid", "since"}
    assert isinstance(holder["pid"], int)
    for time in (holder["since"], *(agent.pop("since") for agent in agents.values())):
        assert re.fullmatch(UTC_TIME, time)
        assert datetime.fromisoformat(time).tzinfo is not None
    assert (
        agents["heartbeat"].items()
        >= {
            "status": "running",
            "detail": "writing a recipe",
            "live": True,
            "stale": False,
        }.items()
    )
    assert (agents["conversation"]["live"], agents["conversation"]["stale"]) == (False, True)
    assert agents["conversation"]["holder"] is not None
    assert agents["backup"].items() >= {"live": False, "stale": False, "holder": None}.items()


def test_json_of_some_agents_holds_only_them(board: CommandLine) -> None:
    document = json.loads(board("status", "--json", "backup", "heartbeat").out)
    assert agents_of(document).keys() == {"backup", "heartbeat"}


def test_an_agent_that_is_not_on_the_board_is_an_answer_of_its_own(board: CommandLine) -> None:
    done = board("status", "heartbeat", "nobody")
    assert (done.code, done.out) == (3, "")
    assert done.err == "assistant: not on the board: nobody\n"


def test_check_answers_with_the_gravest_state(
    assistant: CommandLine, dsn: str, sql: psycopg.Connection[Any]
) -> None:
    def check(*agents: str) -> int:
        return assistant("status", "--check", "--json", *agents).code

    assert check() == 3
    assistant("report", "conversation", "idle")
    assistant("report", "heartbeat", "idle")
    assistant("report", "backup", "idle")
    assert (check(), check("heartbeat"), check("backup")) == (3, 3, 0)
    hold(dsn, "conversation")
    hold(dsn, "heartbeat")
    assert check() == 0
    assistant("report", "backup", "failed")
    assert (check(), check("heartbeat")) == (6, 0)
    lapse(sql, "heartbeat")
    assert (check(), check("backup"), check("conversation")) == (4, 6, 0)


def test_without_check_every_state_is_an_answer(board: CommandLine) -> None:
    assert board("status", "--json").code == board("status").code == 0


def test_history_shows_the_last_transitions_oldest_first(
    assistant: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    for number in range(4):
        assistant("report", "backup", "running", f"step {number}")
    assistant("report", "other", "failed", "a\nb")
    done = assistant("status", "--history", "-n", "3")
    rows = [line.split("\t") for line in done.out.splitlines()]
    assert [row[1:] for row in rows] == [
        ["backup", "running", "step 2"],
        ["backup", "running", "step 3"],
        ["other", "failed", "a\\nb"],
    ]
    assert all(re.fullmatch(UTC_TIME, row[0]) for row in rows)

    document = json.loads(assistant("status", "--history", "--json", "other").out)
    (event,) = document["events"]
    assert document["schema"] == 1
    assert (event["agent"], event["status"], event["detail"]) == ("other", "failed", "a\nb")

    sql.execute("UPDATE assistant.board_events SET at = at - interval '2 hours' WHERE id <= 3")
    assert len(assistant("status", "--history", "--since", "1h").out.splitlines()) == 2
    assert len(assistant("status", "--history", "--since", "3h").out.splitlines()) == 5


@pytest.mark.parametrize(
    "options",
    [
        ["--history", "--since", "soon"],
        ["--history", "-n", "0"],
        ["--history", "--watch"],
        ["--history", "--check"],
        ["--since", "1h"],
        ["-n", "1"],
        ["--watch", "--check"],
    ],
)
def test_options_that_do_not_fit_are_a_usage_error(
    assistant: CommandLine, options: list[str]
) -> None:
    done = assistant("status", *options)
    assert (done.code, done.out) == (2, "")
    assert done.err.count("\n") == 1


def test_a_database_that_nobody_used_has_an_empty_board(assistant: CommandLine) -> None:
    done = assistant("status")
    assert (done.code, done.out) == (0, "")
    assert "no agent is on the board yet" in done.err
    document = json.loads(assistant("status", "--json").out)
    assert (document["agents"], document["inbox"]["waiting"]) == ([], 0)
    assert assistant("status", "--history").out == ""
    assert json.loads(assistant("status", "--history", "--json").out)["events"] == []


def test_reading_writes_nothing(board: CommandLine, sql: psycopg.Connection[Any]) -> None:
    query = "SELECT last_value, (SELECT count(*) FROM assistant.leases) FROM assistant.revisions"
    before = sql.execute(query).fetchone()
    for options in ([], ["--json"], ["--history"], ["--check"]):
        board("status", *options)
    assert sql.execute(query).fetchone() == before


def test_on_a_terminal_it_is_a_table_that_tells_everything(board: CommandLine) -> None:
    board("send", "hello")
    text = Terminal(board, "status").finish_plain()
    conversation, heartbeat, backup = (
        next(line for line in text.splitlines() if line.startswith(agent))
        for agent in ("conversation", "heartbeat", "backup")
    )
    assert re.search(r"idle .* stale .* \d+", conversation)
    assert re.search(r"running +writing a recipe +\d+\w+ +live .* \d+", heartbeat)
    assert re.search(r"failed +disk\\tfull +\d+\w+ +-", backup)
    assert re.search(r"1 waiting \(oldest \d+m?s\)", text)
    assert "no heartbeat yet" in text


def test_the_table_fits_the_terminal_and_loses_nothing(assistant: CommandLine) -> None:
    assistant("report", "backup", "running", "word " * 60 + "end")
    for columns, setting in ((60, None), (400, "60")):
        if setting is not None:
            assistant.environment["COLUMNS"] = setting
        text = Terminal(assistant, "status", columns=columns).finish_plain()
        assert max(map(len, text.splitlines())) <= 60
        assert (text.count("word"), text.count("end")) == (60, 1)
        assert "…" not in text


def test_a_width_of_zero_is_none(assistant: CommandLine) -> None:
    assistant("report", "backup", "running", "the disk")
    assistant.environment.update(COLUMNS="0", LINES="0")
    assert "the disk" in Terminal(assistant, "status").finish_plain()


def test_in_a_narrow_table_a_value_goes_on_below(board: CommandLine) -> None:
    lines = Terminal(board, "status", columns=40).finish_plain().splitlines()
    assert max(map(len, lines)) <= 40
    (start,) = {line.index("PROC") for line in lines if "PROC" in line}
    process = "".join(line[start:].strip() for line in lines)
    _, state, host, pid = board("status", "heartbeat").out.rstrip().rsplit("\t", 3)
    assert f"{state}{host}{pid}" in process.replace(" ", "")


def test_color_is_as_the_user_wishes(board: CommandLine) -> None:
    def colored(**environment: str) -> bool:
        command_line = CommandLine({**board.environment, "TERM": "xterm-256color", **environment})
        return (
            re.search(r"\x1b\[[0-9;]*3[0-9]m", run_on_terminal(command_line, "status")) is not None
        )

    assert colored()
    assert not colored(NO_COLOR="1")
    assert not colored(TERM="dumb")
    board.environment["TERM"] = "xterm-256color"
    assert "\x1b" in run_on_terminal(board, "status", "--color", "always")
    assert not re.search(r"3[0-9]m", run_on_terminal(board, "--color=never", "status"))
    assert "\x1b" not in board("status", "--color", "always", "--json").out
    assert "\x1b" not in board("status").out
    done = board("status", "--color", "red")
    assert (done.code, done.out) == (2, "")


def test_history_on_a_terminal_is_a_table(assistant: CommandLine) -> None:
    assistant("report", "backup", "failed", "disk full")
    text = Terminal(assistant, "status", "--history").finish_plain()
    assert re.search(r"\d\d:\d\d:\d\d +backup +failed +disk full", text)
