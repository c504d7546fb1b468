"""The log of `run`: one line an event on stderr, as text or as JSON, and nothing that was said."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from .conftest import CommandLine, eventually

CANARY = "canary-4711"
SAID = f"first line\n{CANARY} of two"
REPEATS_AND_FAILS = r"printf 'and\n\033[2Jwhy: ' >&2; tail -n 1 >&2; exit 3"
MODEL = f'command:if [ -e "$HOME/fail" ]; then {REPEATS_AND_FAILS}; fi; echo x'
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def log_of_turns(assistant: CommandLine, dsn: str, form: str) -> list[str]:
    """What `run` logs of one turn that is done, one that fails, and its end on a signal."""
    run = assistant.start_run("--model", MODEL, "--log-format", form)
    assert assistant("send", "--wait", f"fine\n{CANARY}").out == "x\n"
    Path(assistant.environment["HOME"], "fail").touch()
    assistant("send", SAID)
    with psycopg.connect(dsn, autocommit=True) as connection:
        failed = "SELECT FROM assistant.turns WHERE outcome = 'failed'"
        eventually(lambda: connection.execute(failed).rowcount == 1, "a failed turn")
        entry = "SELECT FROM kv WHERE value -> 'conversation' ->> 'status' = 'failed'"
        eventually(lambda: connection.execute(entry).rowcount == 1, "its end")
    run.terminate()
    _, log = run.communicate()
    assert run.returncode == 0
    assert CANARY not in log
    assert log.replace("\n", "").isprintable()
    return log.splitlines()


def test_the_text_log_is_a_line_an_event(assistant: CommandLine, dsn: str) -> None:
    lines = log_of_turns(assistant, dsn, "text")
    for line in lines:
        time, level, _ = line.split(" ", 2)
        assert TIME.fullmatch(time)
        assert level in {"INFO", "WARNING"}
    assert [line for line in lines if re.search(r" INFO conversation: turn \d+ done after ", line)]
    # Where this takes long, another attempt has failed meanwhile.
    failed = next(line for line in lines if " failed after " in line)
    assert " WARNING conversation: turn " in failed
    assert failed.endswith(r" exited with 3: \x1b[2Jwhy: [the message]")
    assert lines[-1].endswith("stopped; conversation and heartbeat released")


def test_the_json_log_is_an_object_an_event(assistant: CommandLine, dsn: str) -> None:
    events = [json.loads(line) for line in log_of_turns(assistant, dsn, "json")]
    for event in events:
        assert list(event)[:3] == ["time", "level", "event"]
        assert TIME.fullmatch(event["time"])
        assert datetime.fromisoformat(event["time"]).tzinfo is not None
    turns = [e for e in events if e.get("agent") == "conversation" and "outcome" in e]
    assert [(e["level"], e["outcome"]) for e in turns] == [("INFO", "done"), ("WARNING", "failed")]
    assert [type(e["turn"]) for e in turns] == [int, int]
    assert all(0 < e["seconds"] < 20 for e in turns)
    assert turns[1]["event"].endswith(" exited with 3: \x1b[2Jwhy: [the message]")


def test_a_bad_format_is_a_usage_error(assistant: CommandLine) -> None:
    done = assistant("run", "--log-format", "xml")
    assert (done.code, done.out) == (2, "")
    assert done.err == "assistant: --log-format is text or json\n"


def test_what_ends_a_run_that_logs_json_is_json(assistant: CommandLine) -> None:
    assistant.start_run()
    done = assistant("run", "--log-format", "json")
    assert done.code == 5
    (event,) = [json.loads(line) for line in done.err.splitlines()]
    assert (event["level"], "is already held" in event["event"]) == ("ERROR", True)


LIBRARIES = f"""
import asyncio, gc, logging, sys, warnings
from assistant_cli.cli.logs import log_to_stderr

log_to_stderr(logging.INFO, sys.argv[1])
warnings.warn("old\\r ways")
logging.getLogger("library").warning("two\\nlines")
logging.getLogger("library").info("chatter")

async def forget():
    async def fail():
        raise ValueError("{CANARY}")
    task = asyncio.create_task(fail())
    await asyncio.sleep(0)
    del task
    gc.collect()
    try:
        await fail()
    except ValueError:
        logging.getLogger("assistant_cli.agents.execution").exception("unforeseen")

asyncio.run(forget())
"""


def log_of_libraries(form: str) -> list[str]:
    command = [sys.executable, "-c", LIBRARIES, form]
    return subprocess.run(command, capture_output=True, text=True, check=True).stderr.splitlines()


def test_warnings_of_libraries_and_of_asyncio_come_in_the_same_format() -> None:
    events: list[dict[str, Any]] = [json.loads(line) for line in log_of_libraries("json")]
    told = [(event["level"], event["event"]) for event in events]
    assert [level for level, _ in told] == ["WARNING", "WARNING", "ERROR", "ERROR"]
    assert told[0][1].endswith(r"UserWarning: old" + "\r ways")
    assert told[1][1] == "two\nlines"
    assert told[2][1].startswith("Task exception was never retrieved")
    assert re.fullmatch(r"unforeseen: ValueError at .+:\d+ forget > .+:\d+ fail", told[3][1])


def test_in_the_text_log_an_event_of_many_lines_is_one() -> None:
    lines = log_of_libraries("text")
    assert [line.split(" ")[1] for line in lines] == ["WARNING", "WARNING", "ERROR", "ERROR"]
    assert lines[1].endswith(r" WARNING two\nlines")


@pytest.mark.parametrize("form", ["text", "json"])
def test_what_an_error_says_is_not_where_it_happened(form: str) -> None:
    assert CANARY not in log_of_libraries(form)[-1]
