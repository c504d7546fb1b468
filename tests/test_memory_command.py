"""`assistant memory`: reading and correcting what the agents remember."""

from __future__ import annotations

import asyncio
import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from assistant_cli.store.database import Database

from .conftest import CommandLine
from .hosting import ask, rows
from .openai_server import OpenAIServer, calls, marked, says, texts
from .terminals import run_on_terminal


@pytest.fixture
def remembered(assistant: CommandLine) -> CommandLine:
    assistant("kv", "set", "memory/user", "--string", "likes tea\nand \x1b[31mred")
    assistant("kv", "set", "memory/notes/1", "--string", "the milk is out")
    assistant("kv", "set", "diary/1", "--string", "a quiet day, no Milk")
    assistant("kv", "set", "other", "--string", "milk")
    return assistant


def test_all_that_is_remembered_is_shown_a_line_each(remembered: CommandLine) -> None:
    done = remembered("memory", "show")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [
        "memory/notes/1\tthe milk is out",
        "memory/user\tlikes tea\\nand \\x1b[31mred",
        "diary/1\ta quiet day, no Milk",
    ]
    document = json.loads(remembered("memory", "show", "--json").out)
    assert document["memory"][2] == {"key": "diary/1", "text": "a quiet day, no Milk"}


def test_one_text_is_shown_as_it_is_and_escaped_on_a_terminal(remembered: CommandLine) -> None:
    assert remembered("memory", "show", "user").out == "likes tea\nand \x1b[31mred\n"
    assert "and \\x1b[31mred" in run_on_terminal(remembered, "memory", "show", "user")
    done = remembered("memory", "show", "soul")
    assert (done.code, done.out) == (3, "")


def test_a_search_finds_all_words_in_any_case(remembered: CommandLine) -> None:
    found = remembered("memory", "search", "milk").out
    assert [line.split("\t")[0] for line in found.splitlines()] == ["memory/notes/1", "diary/1"]
    assert remembered("memory", "search", "quiet MILK").out.startswith("diary/1")
    assert remembered("memory", "search", "coffee").code == 3


@pytest.mark.parametrize(
    ("query", "found"), [('"hi"', True), ("nleft", False), ("LEFT diary", True), ("gone", False)]
)
async def test_a_model_finds_what_a_user_finds(
    assistant: CommandLine,
    database: Database,
    server: OpenAIServer,
    talking: Any,
    query: str,
    found: bool,
) -> None:
    await database.kv.set("diary/1", 'she said "hi"\nleft at five')
    done = await asyncio.to_thread(assistant, "memory", "search", query)
    assert done.code == (0 if found else 3)
    server.will(calls("search_memory", json.dumps({"query": query})), says("Well."))
    async with talking():
        await ask(database, "look")
    (result,) = texts(server.requests[1], "tool")
    told = 'diary/1: she said "hi"\nleft at five' if found else "nothing found"
    assert marked(result) == [("tool search_memory", told)]


async def test_a_value_that_python_cannot_hold_is_shown_and_told_as_it_is(
    assistant: CommandLine, database: Database, server: OpenAIServer, talking: Any
) -> None:
    digits = "7" * 5_000
    await rows(database, "INSERT INTO kv VALUES ('memory/number', %s::jsonb)", digits)
    shown = await asyncio.to_thread(assistant, "memory", "show")
    assert (shown.code, shown.out) == (0, f"memory/number\t{digits}\n")
    async with talking():
        await ask(database, "hello")
    (instructions,) = texts(server.requests[0], "system")
    assert ("memory", f"memory/number: {digits}") in marked(instructions)


def editor(folder: Path, script: str) -> str:
    path = folder / "editor"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return shlex.quote(str(path))


def test_an_edit_is_kept(remembered: CommandLine, tmp_path: Path) -> None:
    remembered.environment["EDITOR"] = editor(tmp_path, 'echo "and milk" >> "$1"')
    assert remembered("memory", "edit", "notes/1").code == 0
    assert remembered("memory", "show", "notes/1").out == "the milk is out\nand milk\n"
    assert remembered("memory", "edit", "soul").code == 0
    assert remembered("kv", "get", "memory/soul", "-r").out == "and milk\n"


def test_ctrl_c_in_an_editor_that_goes_on_does_not_end_the_edit(
    remembered: CommandLine, tmp_path: Path
) -> None:
    script = 'trap : INT; kill -INT $PPID $$; echo mine > "$1"'
    remembered.environment["EDITOR"] = editor(tmp_path, script)
    assert remembered("memory", "edit", "user").code == 0
    assert remembered("memory", "show", "user").out == "mine\n"


def test_an_edit_that_comes_too_late_loses_and_its_text_is_kept(
    remembered: CommandLine, tmp_path: Path
) -> None:
    other = shlex.join(remembered.command("kv", "set", "memory/user", "--string", "coffee"))
    remembered.environment["EDITOR"] = editor(tmp_path, f'{other}; echo mine > "$1"')
    done = remembered("memory", "edit", "user")
    assert (done.code, done.out) == (5, "")
    kept = Path(done.err.strip().rpartition(" ")[2])
    assert kept.read_text() == "mine\n"
    kept.unlink()
    assert remembered("memory", "show", "user").out == "coffee\n"


@pytest.mark.parametrize(
    ("script", "code"),
    [
        (r'printf "caf\351" > "$1"', 65),
        ('echo mine > "$1"; exit 1', 78),
        ('echo mine > "$1"; kill -INT $PPID $$', 130),
    ],
)
def test_the_text_of_an_edit_that_fails_is_kept(
    remembered: CommandLine, tmp_path: Path, script: str, code: int
) -> None:
    remembered.environment |= {"TMPDIR": str(tmp_path), "EDITOR": editor(tmp_path, script)}
    done = remembered("memory", "edit", "user")
    assert (done.code, done.out, len(done.err.splitlines())) == (code, "", 1)
    kept = Path(done.err.strip().rpartition(" ")[2])
    assert kept.read_bytes() in {b"caf\xe9", b"mine\n"}
    assert remembered("memory", "show", "user").out.startswith("likes tea")


def test_the_ends_of_lines_stay_as_they_are(remembered: CommandLine, tmp_path: Path) -> None:
    remembered("kv", "set", "memory/user", "--string", "tea\r\nmilk")
    remembered.environment["EDITOR"] = editor(tmp_path, 'echo "red" >> "$1"')
    assert remembered("memory", "edit", "user").code == 0
    assert json.loads(remembered("kv", "get", "memory/user").out) == "tea\r\nmilk\nred"


def test_what_is_no_text_is_not_edited(remembered: CommandLine, tmp_path: Path) -> None:
    remembered("kv", "set", "memory/user", '{"a": 1}')
    remembered.environment["EDITOR"] = editor(tmp_path, 'echo mine > "$1"')
    done = remembered("memory", "edit", "user")
    assert (done.code, done.out) == (65, "")
    assert "use `assistant kv set memory/user`" in done.err
    assert remembered("kv", "get", "memory/user").out == '{"a": 1}\n'


@pytest.mark.parametrize(
    ("command", "code"),
    [(None, 2), ("no-such-editor", 78), ("vi 'x", 78), ("false", 78), ("rm", 66), ("true", 0)],
)
def test_without_an_edit_nothing_changes(
    remembered: CommandLine, tmp_path: Path, command: str | None, code: int
) -> None:
    remembered.environment["TMPDIR"] = str(tmp_path)
    if command:
        remembered.environment["EDITOR"] = command
    done = remembered("memory", "edit", "user")
    assert (done.code, done.out, len(done.err.splitlines())) == (code, "", 1)
    assert remembered("memory", "show", "user").out.startswith("likes tea")
    assert list(tmp_path.glob("assistant-memory-*")) == []
