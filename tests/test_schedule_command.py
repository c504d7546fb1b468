"""`assistant schedule`: what is added, shown, changed and cancelled, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest

from .conftest import CommandLine, eventually
from .terminals import run_on_terminal


@pytest.fixture
def sql(dsn: str) -> Iterator[psycopg.Connection[dict[str, Any]]]:
    with psycopg.connect(dsn, autocommit=True, row_factory=psycopg.rows.dict_row) as connection:
        yield connection


@pytest.fixture
def bare(environment: dict[str, str]) -> CommandLine:
    """The command line where no database is: what is refused is refused before."""
    closed = {"ASSISTANT_DATABASE_URL": "postgresql://127.0.0.1:1/x"}
    return CommandLine({**environment, **closed})


def add(assistant: CommandLine, *arguments: str, **options: str) -> str:
    """Add a schedule; returns its id."""
    done = assistant("schedule", "add", *arguments, **options)
    assert (done.code, done.err) == (0, "")
    return done.out.removesuffix("\n")


def shown(assistant: CommandLine, number: str) -> dict[str, Any]:
    done = assistant("schedule", "show", number, "--json")
    assert (done.code, done.err, done.out.count("\n")) == (0, "", 1)
    document: dict[str, Any] = json.loads(done.out)
    return document


def parse(moment: str) -> datetime:
    return datetime.fromisoformat(moment)


def test_the_id_is_printed_and_everything_is_kept(assistant: CommandLine) -> None:
    zone = "--tz=America/New_York"
    number = add(assistant, "--cron", " 0 9  * * 1-5", zone, "-c", "work", "what is on?")
    document = shown(assistant, number)
    next_at = parse(document["schedule"].pop("next_at"))
    local = next_at.astimezone(ZoneInfo("America/New_York"))
    assert (local.hour, local.minute, local.weekday() < 5) == (9, 0, True)
    created = parse(document["schedule"].pop("created_at"))
    assert timedelta(0) < datetime.now(UTC) - created < timedelta(minutes=1)
    assert document == {
        "schema": 1,
        "schedule": {
            "id": int(number),
            "state": "active",
            "kind": "cron",
            "spec": "0 9 * * 1-5",
            "zone": "America/New_York",
            "catch_up": "once",
            "action": "ask",
            "conversation": "work",
            "text": "what is on?",
            "fired_at": None,
            "attempts": 0,
            "retry_at": None,
            "error": None,
        },
        "runs": [],
    }


def test_the_hosts_zone_is_kept_by_its_name(assistant: CommandLine) -> None:
    assistant.environment["TZ"] = "Asia/Tokyo"
    fact = shown(assistant, add(assistant, "--at", "tomorrow 9:00", "tea"))["schedule"]
    assert (fact["kind"], fact["zone"]) == ("at", "Asia/Tokyo")
    assert parse(fact["next_at"]).astimezone(ZoneInfo("Asia/Tokyo")).hour == 9


def test_a_host_zone_without_a_name_is_enough_for_a_single_time(assistant: CommandLine) -> None:
    assistant.environment["TZ"] = "XYZ-5:17"
    fact = shown(assistant, add(assistant, "--at", "tomorrow 9:00", "tea"))["schedule"]
    assert (fact["zone"], fact["next_at"][11:16]) == (None, "03:43")
    done = assistant("schedule", "add", "--cron", "0 9 * * *", "tea")
    assert (done.code, done.out, len(done.err.splitlines())) == (2, "", 1)
    assert "this host's time zone is not known; write it like Europe/Berlin" in done.err


@pytest.mark.parametrize("arguments", [["-"], []])
def test_the_text_comes_from_stdin_too(assistant: CommandLine, arguments: list[str]) -> None:
    number = add(assistant, "--every", "2h", *arguments, stdin="one\n- two\n\n")
    assert shown(assistant, number)["schedule"]["text"] == "one\n- two\n"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "give one of --at, --every and --cron"),
        (["--at", "2h", "--every", "2h"], "give one of --at, --every and --cron"),
        (["--at", "tea"], "'tea' is not a time; write it like 2h, "),
        (["--at", "2020-01-01 9:00"], "'2020-01-01 9:00' is over already"),
        (["--every", "soon"], "'soon' is not a duration; write it like 90s, 30m or 2h"),
        (["--every", "off"], "'off' is not a duration; write it like 90s, 30m or 2h"),
        (["--every", "59s"], "'59s' is too often; one minute is the least"),
        (["--every", "2h", "--tz", "UTC"], "--tz goes with --at and --cron"),
        (["--cron", "9 * *"], "'9 * *' is not a cron line; write minute, hour, "),
        (["--cron", "99 * * * *"], "'99 * * * *' is not a cron line: bad minute; write "),
        (["--cron", ""], "'' is not a cron line"),
        (["--cron", "0 9 * * *", "--tz", "Nowhere"], "no time zone 'Nowhere'; write it like "),
        (["--at", "9:00", "--tz", ""], "there is no time zone ''"),
        (["--every", "2h", "--catch-up", "twice"], "it is once or skip, not 'twice'"),
    ],
)
def test_bad_input_is_a_usage_error_that_names_what_is_accepted(
    bare: CommandLine, arguments: list[str], complaint: str
) -> None:
    done = bare("schedule", "add", *arguments, "text")
    assert (done.code, done.out, len(done.err.splitlines())) == (2, "", 1)
    assert complaint in done.err


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_text_is_bad_data(assistant: CommandLine, text: str) -> None:
    number = add(assistant, "--every", "2h", "tea")
    for arguments in (["add", "--every", "2h", text], ["edit", number, text]):
        done = assistant("schedule", *arguments)
        assert (done.code, done.out, done.err) == (65, "", "assistant: the message is empty\n")


def test_the_list_has_what_is_to_come_and_with_all_what_is_over(
    assistant: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    assert assistant("schedule", "ls").out == ""
    assert json.loads(assistant("schedule", "ls", "--json").out) == {"schema": 1, "schedules": []}
    later = add(assistant, "--at", "3h", "--tz", "UTC", "later")
    sooner = add(assistant, "--every", "2h", "--say", "so\ton")
    gone = add(assistant, "--every", "1h", "gone")
    assert assistant("schedule", "cancel", gone).code == 0
    lines = [line.split("\t") for line in assistant("schedule", "ls").out.splitlines()]
    assert [line[:2] + line[3:] for line in lines] == [
        [sooner, "active", "every 2h", "main", "so\\ton"],
        [later, "active", "at UTC", "main", "later"],
    ]
    everything = assistant("schedule", "ls", "--all").out.splitlines()
    assert everything[-1].split("\t") == [gone, "cancelled", "-", "every 1h", "main", "gone"]
    document = json.loads(assistant("schedule", "ls", "--all", "--json").out)
    assert [s["id"] for s in document["schedules"]] == [int(sooner), int(later), int(gone)]
    assert [s["next_at"] is None for s in document["schedules"]] == [False, False, True]


def test_on_a_terminal_times_are_those_of_the_hosts_zone(assistant: CommandLine) -> None:
    add(assistant, "--cron", "0 9 * * *", "--tz", "UTC", "tea")
    assistant.environment["TZ"] = "Asia/Tokyo"
    shown_time = run_on_terminal(assistant, "schedule", "ls").split("  ")[2]
    assert shown_time.endswith(" 18:00:00")
    piped = assistant("schedule", "ls").out.split("\t")[2]
    assert piped.endswith("T09:00:00.000Z")


def test_a_reminder_is_a_schedule_that_can_be_cancelled(
    assistant: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    assert assistant("send", "/remind 2h tea").code == 0
    assert assistant("run", "--until-idle").code == 0
    number, *_, text = assistant("schedule", "ls").out.strip().split("\t")
    assert text == "tea"
    assert assistant("schedule", "cancel", number).code == 0
    assistant("send", "--id", "a", "/reminders")
    assert assistant("run", "--until-idle").code == 0
    done = assistant("send", "--id", "a", "/reminders", "--wait")
    assert done.out == "There are no reminders to come.\n"


def test_what_steers_a_terminal_is_shown_and_not_obeyed(assistant: CommandLine) -> None:
    number = add(assistant, "--every", "2h", "[red]\x1b[31m\u202e")
    for arguments in (["ls"], ["show", number]):
        text = run_on_terminal(assistant, "schedule", *arguments)
        assert "[red]\\x1b[31m\\u202e" in text
        assert "\x1b[31m" not in text


def test_an_edit_changes_what_it_names(assistant: CommandLine) -> None:
    number = add(assistant, "--cron", "0 9 * * *", "--tz", "UTC", "tea")
    before = shown(assistant, number)["schedule"]

    def edit(*arguments: str, **options: str) -> dict[str, Any]:
        done = assistant("schedule", "edit", number, *arguments, **options)
        assert (done.code, done.out, done.err) == (0, "", "")
        fact: dict[str, Any] = shown(assistant, number)["schedule"]
        return fact

    assert edit("coffee") == {**before, "text": "coffee"}
    assert edit("--catch-up", "skip")["catch_up"] == "skip"
    moved = edit("--tz", "Asia/Tokyo")
    assert (moved["spec"], moved["zone"], moved["text"]) == ("0 9 * * *", "Asia/Tokyo", "coffee")
    assert parse(moved["next_at"]).hour == 0
    line = edit("--cron", "30 8 * * *")
    assert (line["spec"], line["zone"]) == ("30 8 * * *", "Asia/Tokyo")
    assert parse(line["next_at"]).strftime("%H:%M") == "23:30"
    every = edit("--every", "2h", "-", stdin="milk\n")
    assert (every["kind"], every["spec"], every["zone"]) == ("every", "2h", None)
    assert (every["catch_up"], every["text"]) == ("skip", "milk")


def test_what_is_no_edit_is_a_usage_error(assistant: CommandLine) -> None:
    number = add(assistant, "--every", "2h", "tea")
    before = shown(assistant, number)
    for arguments in (
        [],
        ["--at", "2h", "--cron", "0 9 * * *"],
        ["--tz", "UTC"],
        ["--at", "2020-01-01 9:00"],
        ["--cron", "0 9"],
        ["--catch-up", "x"],
    ):
        done = assistant("schedule", "edit", number, *arguments)
        assert (done.code, done.out, len(done.err.splitlines())) == (2, "", 1), arguments
    assert shown(assistant, number) == before


@pytest.mark.parametrize("command", ["show", "edit", "cancel", "run"])
def test_what_is_not_there_or_cancelled_is_answered_with_3(
    assistant: CommandLine, command: str
) -> None:
    text = ["new"] if command == "edit" else []
    unknown = assistant("schedule", command, "4711", *text)
    assert (unknown.code, unknown.out) == (3, "")
    assert unknown.err.startswith("assistant: there is no schedule 4711; ")
    number = add(assistant, "--every", "2h", "tea")
    assert assistant("schedule", "cancel", number).code == 0
    if command != "show":
        over = assistant("schedule", command, number, *text)
        assert (over.code, over.out) == (3, "")
        assert over.err == f"assistant: schedule {number} is cancelled; add another one\n"
    for word in ("x", "-1", "1" * 30):
        assert assistant("schedule", command, word, *text).code == 2


def test_a_run_on_request_prints_the_message_and_shows_up(
    assistant: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    number = add(assistant, "--every", "2h", "tea")
    before = shown(assistant, number)["schedule"]
    message = assistant("schedule", "run", number).out.strip()
    document = shown(assistant, number)
    assert document["schedule"] == before
    (run,) = document["runs"]
    assert (run["outcome"], run["requested"], run["message_id"]) == ("fired", True, message)
    lines = assistant("schedule", "show", number).out.splitlines()
    assert lines[-1].split("\t")[::2] == ["run", "fired", "0"]
    query = "SELECT id::text, content, source, state FROM assistant.messages"
    assert sql.execute(query).fetchall() == [
        {"id": message, "content": "tea", "source": "schedule", "state": "waiting"}
    ]


def test_a_program_that_runs_fires_it_and_the_model_answers(
    assistant: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    assistant.start_run("--heartbeat", "off", "--model", "command:tr a-z A-Z")
    number = add(assistant, "--at", "1s", "tea")
    replies = "SELECT content FROM assistant.messages WHERE role = 'assistant'"
    eventually(lambda: sql.execute(replies).fetchall() == [{"content": "TEA"}], "the reply")
    document = shown(assistant, number)
    assert document["schedule"]["state"] == "done"
    assert [(run["outcome"], run["missed"]) for run in document["runs"]] == [("fired", 0)]


def test_processes_that_are_killed_in_turn_fire_each_time_once(
    assistant: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    number = add(assistant, "--every", "1m", "--say", "tick")
    sql.execute("UPDATE assistant.schedules SET spec = '1s', due_at = now() + interval '1 s'")
    query = "SELECT due_at, outcome, missed FROM assistant.schedule_runs ORDER BY due_at"
    processes = [assistant.start_run("--heartbeat", "off", "--standby") for _ in range(2)]
    for kills in range(3):
        count = len(sql.execute(query).fetchall())
        eventually(partial(_has_more, sql, query, count + 1), "two more runs")
        processes[kills].kill()
        processes.append(assistant.start_run("--heartbeat", "off", "--standby"))
    assert assistant("schedule", "cancel", number).code == 0
    runs = sql.execute(query).fetchall()
    following = [run["due_at"] + timedelta(seconds=1 + run["missed"]) for run in runs]
    assert [run["due_at"] for run in runs[1:]] == following[:-1]
    names = "SELECT external_id FROM assistant.messages ORDER BY position"
    expected = [f"{number}/{run['due_at'].astimezone(UTC).isoformat()}" for run in runs]
    assert [row["external_id"] for row in sql.execute(names).fetchall()] == expected


def _has_more(sql: psycopg.Connection[Any], query: str, count: int) -> bool:
    return len(sql.execute(query.encode()).fetchall()) > count
