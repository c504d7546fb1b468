"""`assistant history`: what was said, and with --follow each message as it is committed, once."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import psycopg
import pytest

from .conftest import CommandLine, eventually
from .terminals import Terminal

UTC_TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z"
PUT = (
    "INSERT INTO assistant.messages (id, conversation, role, content, source, state) "
    "VALUES (gen_random_uuid(), %s, 'user', %s, 'psql', 'waiting')"
)
HINT = "SELECT pg_notify('assistant_messages', '')"
HOSTILE = "\x1b[31mred\x9b0m \u202etxet over\rwritten [bold]x[/bold] \u00fc"
SHOWN = r"\x1b[31mred\x9b0m \u202etxet over\rwritten [bold]x[/bold] " + "\u00fc"


@pytest.fixture
def quiet(assistant: CommandLine, sql: psycopg.Connection[Any]) -> CommandLine:
    """The command line on a database in which these were said and nobody answers."""
    for conversation, text in (("main", "one"), ("work", "two"), ("main", "three\n\tlines")):
        sql.execute(PUT, (conversation, text))
    return assistant


def contents(done: str) -> list[str]:
    return [message["content"] for message in json.loads(done)["messages"]]


def read_line(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


def start_following(
    assistant: CommandLine, *options: str, expected: list[str]
) -> subprocess.Popen[str]:
    """Follow as JSON, from when what was there is shown."""
    process = assistant.start("history", "--follow", "--json", *options)
    document = read_line(process)
    assert document["schema"] == 1
    assert [message["content"] for message in document["messages"]] == expected
    return process


def test_in_a_pipe_it_is_a_line_a_message_oldest_first(quiet: CommandLine) -> None:
    done = quiet("history")
    assert (done.code, done.err) == (0, "")
    rows = [line.split("\t") for line in done.out.splitlines()]
    assert [row[1:] for row in rows] == [
        ["main", "user", "waiting", "one"],
        ["main", "user", "waiting", r"three\n\tlines"],
    ]
    assert all(re.fullmatch(UTC_TIME, row[0]) for row in rows)


def test_json_is_one_document_in_the_documented_shape(
    quiet: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    sql.execute("UPDATE assistant.messages SET state = 'failed', error = 'k\na' WHERE position = 2")
    done = quiet("history", "--json", "-c", "work")
    assert (done.code, done.err, done.out.count("\n")) == (0, "", 1)
    document = json.loads(done.out)
    (message,) = document["messages"]
    assert document.keys() == {"schema", "messages"}
    ((identity, sender),) = sql.execute(
        "SELECT id::text, sender FROM assistant.messages WHERE position = 2"
    ).fetchall()
    assert re.fullmatch(UTC_TIME, message.pop("created_at"))
    assert message == {
        "id": identity,
        "conversation": "work",
        "role": "user",
        "sender": sender,
        "source": "psql",
        "state": "failed",
        "content": "two",
        "error": "k\na",
    }


def test_count_conversation_and_all_choose_the_messages(quiet: CommandLine) -> None:
    def chosen(*options: str) -> list[str]:
        return contents(quiet("history", "--json", *options).out)

    assert chosen("-n", "1") == ["three\n\tlines"]
    assert chosen("--conversation", "work") == ["two"]
    assert chosen("--all") == ["one", "two", "three\n\tlines"]
    assert chosen("--all", "-n", "2") == ["two", "three\n\tlines"]
    assert chosen("-c", "nowhere") == []


def test_a_conversation_without_messages_is_an_empty_answer(assistant: CommandLine) -> None:
    done = assistant("history")
    assert (done.code, done.out, done.err) == (0, "", "")
    assert json.loads(assistant("history", "--json").out) == {"schema": 1, "messages": []}


@pytest.mark.parametrize(
    "options",
    [
        ["-n", "0"],
        ["-n", "-1"],
        ["-n", "x"],
        ["-n", "9" * 30],
        ["--all", "--conversation", "main"],
        ["main"],
    ],
)
def test_options_that_do_not_fit_are_a_usage_error(
    assistant: CommandLine, options: list[str]
) -> None:
    done = assistant("history", *options)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)


def test_a_name_that_is_not_text_is_bad_data(assistant: CommandLine) -> None:
    done = assistant("history", "-c", "\udcff")
    assert (done.code, done.out) == (65, "")
    assert done.err == "assistant: the conversation is not valid UTF-8\n"


def test_on_a_terminal_a_message_has_its_own_lines_and_steers_nothing(
    assistant: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    forged = "2026-11-23 10:00:00  main  user (psql)"
    sql.execute(PUT, (HOSTILE, f"first\n\n{forged}\n{HOSTILE}"))
    sql.execute("UPDATE assistant.messages SET state = 'failed', error = %s", (f"a\n{HOSTILE}",))
    text = Terminal(assistant, "history", "--all").finish_plain()
    head, *lines = text.splitlines()
    reason = rf"a\n{SHOWN}"
    assert re.fullmatch(r"\d{4}(-\d\d){2} \d\d(:\d\d){2}  .*", head)
    assert head.endswith(f"  {SHOWN}  user (psql)  failed: {reason}")
    assert lines == ["  first", "  ", f"  {forged}", f"  {SHOWN}"]


def test_on_a_terminal_following_shows_what_comes(
    quiet: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    terminal = Terminal(quiet, "history", "-f")
    terminal.wait_for("  three\n  \tlines\n")
    sql.execute(PUT, ("main", HOSTILE))
    sql.execute(HINT)
    terminal.wait_for(f"  main  user (psql)  waiting\n  {SHOWN}\n")
    terminal.process.send_signal(signal.SIGINT)
    assert (terminal.finish(), terminal.errors) == (130, "")


def test_in_a_pipe_every_message_is_one_line_also_when_following(
    assistant: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    process = assistant.start("history", "-f", "--all")
    assert process.stdout is not None
    sql.execute(PUT, ("main", f"a\tb\n{HOSTILE}"))
    sql.execute(HINT)
    assert process.stdout.readline().endswith(f"\tmain\tuser\twaiting\ta\\tb\\n{SHOWN}\n")


def test_following_shows_what_is_said_and_answered_and_reminded(assistant: CommandLine) -> None:
    process = start_following(assistant, expected=[])
    assistant.start_run("--model", "command:tr a-z A-Z", "--heartbeat", "off")
    assert assistant("send", "--wait", "hello").code == 0
    question, answer = read_line(process), read_line(process)
    assert (question["role"], question["content"]) == ("user", "hello")
    assert (answer["role"], answer["content"]) == ("assistant", "HELLO")
    assert assistant("send", "/remind 1s tea").code == 0
    assert read_line(process)["content"] == "/remind 1s tea"
    assert read_line(process)["source"] == "conversation"
    reminder = read_line(process)
    assert (reminder["source"], reminder["content"]) == ("heartbeat", "Reminder: tea")


def test_following_is_about_the_conversation_asked_for(
    quiet: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    work = start_following(quiet, "-c", "work", expected=["two"])
    everything = start_following(quiet, "--all", "-n", "1", expected=["three\n\tlines"])
    for conversation, text in (("main", "four"), ("work", "five")):
        sql.execute(PUT, (conversation, text))
    sql.execute(HINT)
    assert read_line(work)["content"] == "five"
    assert [read_line(everything)["content"] for _ in range(2)] == ["four", "five"]


def test_a_message_committed_after_its_successors_is_shown_too_and_once(
    assistant: CommandLine, dsn: str, sql: psycopg.Connection[Any]
) -> None:
    with psycopg.connect(dsn) as slow, psycopg.connect(dsn) as slower:
        slow.execute(PUT, ("main", "slow"))
        slower.execute(PUT, ("main", "slower"))
        sql.execute(PUT, ("main", "there"))
        process = start_following(assistant, expected=["there"])
        sql.execute(PUT, ("main", "quick"))
        sql.execute(HINT)
        assert read_line(process)["content"] == "quick"
        for late, text in ((slower, "slower"), (slow, "slow")):
            late.execute(HINT)
            late.commit()
            assert read_line(process)["content"] == text
        sql.execute(PUT, ("main", "last"))
        sql.execute(HINT)
        assert read_line(process)["content"] == "last"


def test_each_of_thousands_is_shown_once_and_old_ones_do_not_come_back(
    assistant: CommandLine, dsn: str, sql: psycopg.Connection[Any]
) -> None:
    many = (
        "INSERT INTO assistant.messages (id, conversation, role, content, source, state) "
        "SELECT gen_random_uuid(), 'main', 'user', n::text, 'psql', 'said' "
        "FROM generate_series(%s::int, %s::int) AS n"
    )
    sql.execute(many, (1, 3000))
    process = start_following(assistant, "-n", "2", expected=["2999", "3000"])
    with psycopg.connect(dsn) as slow:
        slow.execute(PUT, ("main", "slow"))
        sql.execute(many, (3001, 3900))
        sql.execute("DELETE FROM assistant.messages WHERE position > 2990 AND position <= 3000")
        sql.execute(HINT)
        slow.execute(HINT)
        shown = [read_line(process)["content"] for _ in range(900)]
        slow.commit()
        assert read_line(process)["content"] == "slow"
    sql.execute(many, (3901, 6000))
    sql.execute(HINT)
    shown += [read_line(process)["content"] for _ in range(2100)]
    assert shown == [str(number) for number in range(3001, 6001)]
    sql.execute(PUT, ("main", "last"))
    sql.execute(HINT)
    assert read_line(process)["content"] == "last"


def test_a_message_is_shown_although_nothing_announced_it(
    assistant: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    process = start_following(assistant, expected=[])
    sql.execute(PUT, ("main", "quiet"))
    assert read_line(process)["content"] == "quiet"


def test_following_carries_on_when_its_connection_is_ended(
    quiet: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    process = start_following(quiet, "-n", "1", expected=["three\n\tlines"])
    for number in range(3):
        sql.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        sql.execute(PUT, ("main", str(number)))
        assert read_line(process)["content"] == str(number)


def test_following_outlives_a_restart_of_the_server(
    private_home: Path, environment: dict[str, str]
) -> None:
    assistant = CommandLine({**environment, "ASSISTANT_HOME": str(private_home)})
    assert assistant("send", "before").code == 0
    process = start_following(assistant, expected=["before"])
    try:
        assert assistant("db", "stop").code == 0
        assert assistant("send", "after").code == 0
        assert read_line(process)["content"] == "after"
    finally:
        assistant.end_all()


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_following_ends_silently_with_its_reader_and_on_ctrl_c(
    quiet: CommandLine, options: list[str]
) -> None:
    process = quiet.start("history", "-f", *options)
    assert process.stdout is not None
    assert "three" in process.stdout.readline() + ("" if options else process.stdout.readline())
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 130
    assert process.communicate() == ("", "")

    process = quiet.start("history", "-f", *options)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    eventually(lambda: process.poll() is not None, "the end")
    assert (process.returncode, process.stderr.read()) == (141, "")


def test_following_says_at_once_that_nobody_answers(environment: dict[str, str]) -> None:
    address = "postgresql://u:s3cret@127.0.0.1:1/x"
    done = CommandLine({**environment, "ASSISTANT_DATABASE_URL": address})("history", "--follow")
    assert (done.code, done.out, done.err.count("\n")) == (69, "", 1)
    assert "s3cret" not in done.err
