"""`assistant send`: acknowledged once it is kept, and with --wait the reply and nothing else."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import signal
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest

from assistant_cli.messages import MAX_MESSAGE_BYTES
from assistant_cli.store.database import Database

from .conftest import CommandLine, eventually
from .hosting import Hold, hosting, until_equal

NOBODY_RUNS = "assistant: no conversation agent is running; the message is kept until one does"
CLOSED_PORT = "postgresql://u:s3cret@127.0.0.1:1/x"


def kept(sql: psycopg.Connection[Any]) -> list[tuple[Any, ...]]:
    """The messages that were sent, as they are stored."""
    query = "SELECT id, conversation, content FROM assistant.messages ORDER BY position"
    return sql.execute(query).fetchall()


def test_the_id_of_the_message_is_printed_once_it_is_kept(
    assistant: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    done = assistant("send", "tea at [bold]five[/] \u2014 \u00e4\n or six ")
    assert (done.code, done.err) == (0, "")
    assert done.out == f"{UUID(done.out.strip())}\n"
    ((identity, *message),) = kept(sql)
    assert str(identity) == done.out.strip()
    assert message == ["main", "tea at [bold]five[/] \u2014 \u00e4\n or six "]


@pytest.mark.parametrize("arguments", [["-"], []])
@pytest.mark.parametrize(
    ("text", "message"), [("one\r\n\n two\n\n", "one\r\n\n two\n"), ("no newline", "no newline")]
)
def test_text_comes_from_stdin_without_its_last_newline(
    assistant: CommandLine,
    sql: psycopg.Connection[Any],
    arguments: list[str],
    text: str,
    message: str,
) -> None:
    assert assistant("send", *arguments, stdin=text).code == 0
    assert [row[2] for row in kept(sql)] == [message]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["-5"], "-5"), (["--", "--color=no"], "--color=no")],
)
def test_text_may_look_like_an_option(
    assistant: CommandLine, sql: psycopg.Connection[Any], arguments: list[str], message: str
) -> None:
    assert assistant("send", *arguments).code == 0
    assert [row[2] for row in kept(sql)] == [message]


def test_the_largest_message_is_kept(assistant: CommandLine, sql: psycopg.Connection[Any]) -> None:
    text = "x" * MAX_MESSAGE_BYTES
    assert assistant("send", "-", stdin=text).code == 0
    assert [row[2] for row in kept(sql)] == [text]


@pytest.mark.parametrize(
    ("arguments", "stdin", "complaint"),
    [
        ([""], b"ignored", "the message is empty"),
        ([], b"\n", "the message is empty"),
        (["-"], b"x" * (MAX_MESSAGE_BYTES + 1), "at most 256,000 bytes; this has 256,001"),
        (["-"], b"caf\xe9", "UTF-8"),
        (["\udcff"], b"", "UTF-8"),
        (["-"], b"a\0b", "NUL"),
        (["hello", "--id", ""], b"", "message id has 1 to 200 bytes"),
        (["hello", "--conversation", "a\nb"], b"", "conversation has 1 to 200 bytes"),
    ],
)
def test_what_cannot_be_kept_is_refused_in_one_line(
    assistant: CommandLine,
    sql: psycopg.Connection[Any],
    arguments: list[str],
    stdin: bytes,
    complaint: str,
) -> None:
    done = assistant("send", *arguments, stdin=stdin)
    assert (done.code, done.out, len(done.err.splitlines())) == (65, "", 1)
    assert complaint in done.err
    assert kept(sql) == []


def test_where_as_many_wait_as_may_the_next_is_to_try_again_later(
    assistant: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    assert assistant("send", "first", "--id", "1").code == 0
    many = (
        "INSERT INTO assistant.messages (id, conversation, role, content, source, state) "
        "SELECT gen_random_uuid(), 'main', 'user', 'x', 'psql', 'waiting' "
        "FROM generate_series(1, 999)"
    )
    sql.execute(many)
    for options in ([], ["--wait"], ["--id", "2"]):
        done = assistant("send", "one too many", *options)
        assert (done.code, done.out) == (75, "")
        assert done.err == (
            "assistant: 1000 messages wait in this conversation, as many as may; "
            "nothing was kept, try again later\n"
        )
    assert len(kept(sql)) == 1_000
    assert assistant("send", "first", "--id", "1").code == 0
    assert assistant("send", "elsewhere", "--conversation", "work").code == 0


def test_on_a_terminal_text_that_is_missing_is_asked_for(environment: dict[str, str]) -> None:
    master, slave = pty.openpty()
    try:
        process = CommandLine(environment).start("send", stdin=slave)
        out, err = process.communicate(timeout=20)
    finally:
        os.close(slave)
        os.close(master)
    assert (process.returncode, out, len(err.splitlines())) == (2, "", 1)
    assert "TEXT is missing" in err


def test_a_message_sent_twice_at_once_under_one_id_is_one_message(
    assistant: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    processes = [assistant.start("send", "--id", "mail 7", "hello") for _ in range(4)]
    ids = {process.communicate(timeout=30)[0] for process in processes}
    assert [process.returncode for process in processes] == [0] * 4
    assert ids == {f"{identity}\n" for identity, _, _ in kept(sql)}
    assert len(ids) == 1
    other = assistant("send", "--id", "mail 7", "hello", "--conversation", "work")
    assert (other.code, other.out) == (5, "")
    assert other.err == "assistant: another message was sent under the id 'mail 7'\n"


def test_a_reply_is_printed_as_it_is_and_nothing_else(assistant: CommandLine) -> None:
    assistant.start_run("--model", "command:printf ' [bold]\\033[31m\\n\\n- \\303\\244\\n'")
    done = assistant("send", "--wait", "hello")
    assert (done.code, done.err) == (0, "")
    assert done.out.strip() == "[bold]\x1b[31m\n\n- \u00e4"
    assert done.out.endswith("\u00e4\n")


def test_the_reply_to_a_message_that_was_answered_can_be_had_again(
    assistant: CommandLine,
) -> None:
    assistant("send", "--id", "mail 7", "hello")
    assert assistant("run", "--until-idle", "--model", "command:tr a-z A-Z").code == 0
    done = assistant("send", "--id", "mail 7", "hello", "--wait", "--timeout", "1h")
    assert (done.code, done.out) == (0, "HELLO\n")


def test_a_message_goes_to_its_conversation(
    assistant: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    assistant.start_run("--model", 'command:cat >&2; echo "$ASSISTANT_CONVERSATION"')
    for options, name in ([], "main"), (["-c", "work"], "work"), (["--conversation=a b"], "a b"):
        assert assistant("send", "--wait", "hello", *options).out == f"{name}\n"
    assert {row[1] for row in kept(sql)} == {"main", "work", "a b"}


def test_where_no_agent_runs_it_says_so_and_keeps_the_message_past_the_deadline(
    assistant: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    done = assistant("send", "--wait", "--timeout", "2s", "hello")
    ((identity, _, content),) = kept(sql)
    assert content == "hello"
    assert (done.code, done.out) == (124, "")
    assert done.err.splitlines() == [
        NOBODY_RUNS,
        f"assistant: no reply within 2s; message {identity} is kept",
    ]


def test_a_deadline_that_passes_while_an_agent_answers_keeps_the_message(
    assistant: CommandLine, sql: psycopg.Connection[Any], tmp_path: Path
) -> None:
    hold = Hold(tmp_path)
    hold.close()
    assistant.start_run("--model", hold.model)
    done = assistant("send", "--wait", "--timeout", "2s", "--id", "slow", "hello")
    ((identity, _, _),) = kept(sql)
    assert (done.code, done.out) == (124, "")
    assert done.err == f"assistant: no reply within 2s; message {identity} is kept\n"
    hold.open()
    assert assistant("send", "--wait", "--id", "slow", "hello").out == "re: hello\n"


def test_a_run_that_dies_while_a_reply_is_waited_for_is_told_and_the_next_one_answers(
    assistant: CommandLine, tmp_path: Path
) -> None:
    hold = Hold(tmp_path)
    hold.close()
    run = assistant.start_run("--model", hold.model, "--heartbeat", "off")
    waiting = assistant.start("send", "--wait", "hello")
    eventually(lambda: hold.asked, "the question")
    run.kill()
    assert waiting.stderr is not None
    assert "no conversation agent is running" in waiting.stderr.readline()
    hold.open()
    assistant.start_run("--model", hold.model, "--heartbeat", "off")
    assert waiting.communicate(timeout=30) == ("re: hello\n", "")


def test_a_deadline_that_passes_tells_why_the_last_attempt_failed(
    assistant: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    assistant.start_run("--model", "command:echo why >&2; exit 3")
    failed = "SELECT FROM assistant.messages WHERE error IS NOT NULL"
    assert assistant("send", "hello", "--id", "1").code == 0
    eventually(lambda: sql.execute(failed).rowcount, "an attempt that failed")
    done = assistant("send", "--wait", "hello", "--id", "1", "--timeout", "1s")
    assert (done.code, done.out, len(done.err.splitlines())) == (124, "", 1)
    told = "is kept; its last attempt failed: the model's command exited with 3: why"
    assert told in done.err


@pytest.mark.parametrize("options", [[], ["--wait"]])
def test_a_deadline_that_passes_while_the_message_is_sent_says_that_nothing_is_known(
    assistant: CommandLine, dsn: str, options: list[str]
) -> None:
    with psycopg.connect(dsn) as blocker:
        blocker.execute("LOCK TABLE assistant.messages IN ACCESS EXCLUSIVE MODE")
        done = assistant("send", *options, "--timeout", "2s", "hello")
    assert (done.code, done.out) == (124, "")
    assert done.err.count("\n") == 1
    assert "the message may be kept or not; --id makes it safe to send it again" in done.err


def test_a_database_that_is_lost_while_the_message_is_sent_says_how_to_send_it_again(
    assistant: CommandLine, sql: psycopg.Connection[Any], dsn: str
) -> None:
    end_those_that_wait = (
        "SELECT pg_terminate_backend(pid) FROM pg_locks JOIN pg_stat_activity USING (pid) "
        "WHERE NOT granted AND datname = current_database()"
    )
    with psycopg.connect(dsn) as blocker:
        blocker.execute("LOCK TABLE assistant.messages IN ACCESS EXCLUSIVE MODE")
        process = assistant.start("send", "hello")

        def has_ended() -> bool:
            sql.execute(end_those_that_wait)
            return process.poll() is not None

        eventually(has_ended, "the end of send")
    out, err = process.communicate()
    assert (process.returncode, out, err.count("\n")) == (69, "", 1)
    assert err.endswith("; --id makes it safe to send it again\n")


async def test_a_message_that_cannot_be_answered_ends_with_the_reason(
    assistant: CommandLine, database: Database
) -> None:
    async with hosting(database, "command:echo kaput >&2; exit 3"):
        # Else the sender says that nobody answers.
        await until_equal(database, "SELECT count(*) FROM assistant.leases", [2])
        done = await asyncio.to_thread(assistant, "send", "--wait", "hello")
    assert (done.code, done.out, len(done.err.splitlines())) == (6, "", 1)
    assert "could not be answered in 3 attempts: " in done.err
    assert "kaput" in done.err


def test_waiting_for_a_reply_is_interrupted_silently(
    assistant: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    process = assistant.start("send", "--wait", "hello")
    assert process.stderr is not None
    assert process.stderr.readline() == f"{NOBODY_RUNS}\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20) == ("", "")
    assert process.returncode == 130
    assert [row[2] for row in kept(sql)] == ["hello"]


@pytest.mark.parametrize("options", [[], ["--wait"]])
def test_on_a_database_that_is_down_nothing_is_acknowledged(
    environment: dict[str, str], options: list[str]
) -> None:
    assistant = CommandLine({**environment, "ASSISTANT_DATABASE_URL": CLOSED_PORT})
    done = assistant("send", "hello", *options)
    assert (done.code, done.out, len(done.err.splitlines())) == (69, "", 1)
    assert re.match("assistant: cannot reach the database: ", done.err)
    assert "s3cret" not in done.err


def test_a_timeout_that_is_none_is_a_usage_error(environment: dict[str, str]) -> None:
    done = CommandLine(environment)("send", "--wait", "hello", "--timeout", "soon")
    assert (done.code, done.out, len(done.err.splitlines())) == (2, "", 1)
