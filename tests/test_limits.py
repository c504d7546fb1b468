"""What is as large as may be is kept; one more byte is refused in one line that tells the limit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from .conftest import CommandLine, Finished

DEPLOYMENT = Path(__file__).parent.parent / "docs" / "deployment.md"

SEND = ["send", "-"]
SCHEDULE = ["schedule", "add", "--every", "1h", "-"]
SET = ["kv", "set", "k", "-"]
AGENT = "a:./@_-9" * 12


@dataclass(frozen=True)
class Limit:
    """A command at its limit, and one beyond; what stdin holds, where one reads it.

    `told`: what the refusal tells of the limit; a row of the page has it, too.
    """

    kept: list[str]
    refused: list[str]
    told: str
    code: int = 65
    stdin: str = ""
    more: str = ""


LIMITS = {
    "message": Limit(SEND, SEND, "256,000 bytes", stdin="x" * 256_000, more="x" * 256_001),
    "schedule": Limit(SCHEDULE, SCHEDULE, "256,000 bytes", stdin="x" * 256_000, more="x" * 256_001),
    "value": Limit(
        SET,
        SET,
        "1,000,000 bytes",
        stdin=f'"{"x" * 999_998}"',
        more=f'"{"x" * 999_999}"',
    ),
    "nesting": Limit(SET, SET, "100 deep", stdin="[" * 100 + "]" * 100, more="[" * 101 + "]" * 101),
    "key": Limit(["kv", "set", "k" * 512, "1"], ["kv", "set", "k" * 513, "1"], "512 bytes"),
    "conversation": Limit(
        ["send", "hello", "--conversation", "c" * 200],
        ["send", "hello", "--conversation", "c" * 201],
        "200 bytes",
    ),
    "conversation of a schedule": Limit(
        [*SCHEDULE[:-1], "tea", "--conversation", "c" * 200],
        [*SCHEDULE[:-1], "tea", "--conversation", "c" * 201],
        "200 bytes",
    ),
    "id": Limit(
        ["send", "hello", "--id", "i" * 200], ["send", "hello", "--id", "i" * 201], "200 bytes"
    ),
    "agent": Limit(
        ["report", f"{AGENT}1234", "idle"],
        ["report", f"{AGENT}12345", "idle"],
        "100",
    ),
    "agent that is tracked": Limit(
        ["track", f"{AGENT}1234", "--", "true"],
        ["track", f"{AGENT}12345", "--", "true"],
        "100",
    ),
    "detail": Limit(
        ["report", "backup", "running", "d" * 2_000],
        ["report", "backup", "running", "d" * 2_001],
        "2,000 bytes",
    ),
    "interval": Limit(
        ["schedule", "add", "--every", "1m", "tea"],
        ["schedule", "add", "--every", "59s", "tea"],
        "minute",
        2,
    ),
    "duration": Limit(
        ["kv", "set", "k", "1", "--ttl", "3660d"],
        ["kv", "set", "k", "1", "--ttl", "3661d"],
        "ten years",
        2,
    ),
}


@pytest.mark.parametrize("name", LIMITS)
def test_what_is_as_large_as_may_be_is_kept_and_more_is_refused(
    assistant: CommandLine, name: str
) -> None:
    limit = LIMITS[name]
    before = assistant("kv", "export").out
    done = assistant(*limit.refused, stdin=limit.more)
    check_refused(done, limit.code, limit.told)
    assert assistant("kv", "export").out == before
    assert assistant("history", "--all").out == assistant("schedule", "ls").out == ""
    assert assistant(*limit.kept, stdin=limit.stdin).code == 0


def check_refused(done: Finished, code: int, told: str) -> None:
    assert (done.code, done.out, len(done.err.splitlines())) == (code, "", 1)
    assert told in done.err


@pytest.mark.parametrize("name", LIMITS)
def test_the_page_of_limits_tells_each(name: str) -> None:
    _, _, table = DEPLOYMENT.read_text().partition("## Limits")
    limit = LIMITS[name]
    told = [row for row in table.splitlines() if limit.told in row]
    assert any(row.endswith(f"| {limit.code} |") for row in told), limit.told


@pytest.mark.parametrize("command", [SET, SEND, SCHEDULE, ["kv", "set", "k", "@/dev/zero"]])
def test_input_that_never_ends_is_not_collected(assistant: CommandLine, command: list[str]) -> None:
    with Path("/dev/zero").open("rb") as endless:
        process = assistant.start(*command, stdin=endless)
        out, err = process.communicate(timeout=30)
    check_refused(Finished(process.returncode, out, err), 65, "more than 4,000,000 bytes")


def test_a_text_of_memory_is_a_value_like_others(assistant: CommandLine, tmp_path: Path) -> None:
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nhead -c "$SIZE" /dev/zero | tr "\\0" x > "$1"\n')
    editor.chmod(0o755)
    assistant.environment |= {"EDITOR": str(editor), "SIZE": "999999"}
    done = assistant("memory", "edit", "user")
    check_refused(done, 65, "at most 1,000,000 bytes")
    kept = Path(done.err.rstrip().rpartition(" ")[2])
    assert kept.read_text() == "x" * 999_999
    kept.unlink()
    assert assistant("kv", "exists", "memory/user").code == 3
    assistant.environment["SIZE"] = "999998"
    assert assistant("memory", "edit", "user").code == 0
