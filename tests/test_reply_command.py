"""`assistant reply`: what a message was answered, asked for when the sender wants to know."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from assistant_cli.store.database import Database

from .conftest import CommandLine, eventually
from .hosting import hosting, until_equal

NOBODY = "00000000-0000-4000-8000-000000000000"


def test_a_reply_is_had_with_the_id_that_send_printed_once_it_is_there(
    assistant: CommandLine,
) -> None:
    message = assistant("send", "hello").out.strip()
    done = assistant("reply", message)
    assert (done.code, done.out) == (8, "")
    assert done.err == f"assistant: message {message} is not answered yet\n"
    assert assistant("run", "--until-idle", "--model", "command:tr a-z A-Z").code == 0
    for options in ([], ["--wait"]):
        done = assistant("reply", message, *options)
        assert (done.code, done.out, done.err) == (0, "HELLO\n", "")


def test_a_reply_that_is_to_come_is_waited_for(assistant: CommandLine) -> None:
    message = assistant("send", "hello").out.strip()
    waiting = assistant.start("reply", message, "--wait")
    assert waiting.stderr is not None
    assert "no conversation agent is running" in waiting.stderr.readline()
    assistant.start_run("--model", "command:tr a-z A-Z")
    assert waiting.communicate(timeout=30) == ("HELLO\n", "")
    assert waiting.returncode == 0


def test_a_reply_that_does_not_come_in_time_ends_the_waiting(assistant: CommandLine) -> None:
    message = assistant("send", "hello").out.strip()
    done = assistant("reply", message, "--wait", "--timeout", "1s")
    assert (done.code, done.out) == (124, "")
    assert f"no reply within 1s; message {message} is kept\n" in done.err


async def test_a_message_that_cannot_be_answered_has_the_reason(
    assistant: CommandLine, database: Database
) -> None:
    message = (await asyncio.to_thread(assistant, "send", "hello")).out.strip()
    failed = "SELECT count(*) FROM assistant.messages WHERE state = 'failed'"
    async with hosting(database, "command:echo kaput >&2; exit 3"):
        await until_equal(database, failed, [1])
    for options in ([], ["--wait"]):
        done = await asyncio.to_thread(assistant, "reply", message, *options)
        assert (done.code, done.out) == (6, "")
        assert "could not be answered in 3 attempts: " in done.err
        assert "kaput" in done.err


def test_until_it_is_tried_again_the_last_failure_is_told(
    assistant: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    assistant.start_run("--model", "command:echo why >&2; exit 3")
    message = assistant("send", "hello").out.strip()
    failed = "SELECT FROM assistant.messages WHERE error IS NOT NULL AND state = 'waiting'"
    eventually(lambda: sql.execute(failed).rowcount, "an attempt that failed")
    done = assistant("reply", message)
    assert (done.code, done.out) == (8, "")
    assert "; its last attempt failed: the model's command exited with 3: why" in done.err


def test_what_an_agent_said_has_no_reply(
    assistant: CommandLine, sql: psycopg.Connection[Any]
) -> None:
    assistant("send", "hello")
    assert assistant("run", "--until-idle").code == 0
    query = "SELECT id FROM assistant.messages WHERE role = 'assistant'"
    ((said,),) = sql.execute(query).fetchall()
    done = assistant("reply", str(said))
    assert (done.code, done.out) == (3, "")
    assert done.err == "assistant: that was said by an agent; nothing answers it\n"


@pytest.mark.parametrize(("given", "code"), [(NOBODY, 3), ("hello", 2), ("", 2)])
def test_the_reply_to_no_message_is_none(assistant: CommandLine, given: str, code: int) -> None:
    for options in ([], ["--wait"]):
        done = assistant("reply", given, *options)
        assert (done.code, done.out, len(done.err.splitlines())) == (code, "", 1)
