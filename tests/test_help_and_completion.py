"""What the command line says of itself: help, refusals, and completion in the shell."""

from __future__ import annotations

import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from assistant_cli import __version__, errors
from assistant_cli.cli.app import COMMANDS, load_command

from .conftest import CommandLine

SCRIPT = Path(sys.executable).with_name("assistant")


def _paths(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, below in getattr(command, "commands", {}).items():
        yield from _paths(below, (*path, name))


PATHS = [(), *(path for name in COMMANDS for path in _paths(load_command(name), (name,)))]


@pytest.fixture
def bare(environment: dict[str, str]) -> CommandLine:
    """The command line where nothing is configured."""
    return CommandLine(environment)


@pytest.fixture
def filled(assistant: CommandLine, dsn: str) -> CommandLine:
    """The command line on a database with keys and agents."""
    board = '{"backup": {"status": "idle", "detail": null}, "beacon": {"status": "idle"}}'
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO kv (key, value) VALUES "
            "('status_board', %s), ('notes/a:1', '1'), ('notes/b', '2'), ('nothing', '3')",
            (board,),
        )
    return assistant


def complete_bash(assistant: CommandLine, line: str) -> list[str]:
    """What bash offers for the last word of a line."""
    words = {"COMP_WORDS": line + "''" * line.endswith(" "), "COMP_CWORD": "-1"}
    return _complete(assistant, "bash", words).splitlines()


def complete_zsh(assistant: CommandLine, line: str) -> str:
    """What zsh is told to offer for the last word of a line."""
    return _complete(assistant, "zsh", {"_TYPER_COMPLETE_ARGS": line})


def _complete(assistant: CommandLine, shell: str, request: dict[str, str]) -> str:
    asked = {**assistant.environment, "_ASSISTANT_COMPLETE": f"complete_{shell}", **request}
    done = CommandLine(asked)()
    assert (done.code, done.err) == (0, "")
    return done.out.strip("\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_says_what_their_own_help_says_first(name: str) -> None:
    assert load_command(name).get_short_help_str() == COMMANDS[name][1]


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_every_command_has_help(bare: CommandLine, path: tuple[str, ...]) -> None:
    # Where it runs in CI, Typer would color what is not a terminal.
    bare.environment["GITHUB_ACTIONS"] = "true"
    done = bare(*path, "--help")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"Usage: {' '.join(('assistant', *path))} ")
    assert "-h, --help" in done.out
    assert not re.search("[\x1b\b]", done.out)
    assert not Path(bare.environment["ASSISTANT_HOME"]).exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["turns", "show", "abc"], "Invalid value for 'ID': 'abc' is not a whole number"),
        (["turns", "show", "1.5"], "'1.5' is not a whole number"),
        (["turns", "show", "0"], "Invalid value for 'ID': 1 is the least"),
        (["turns", "show", "-5"], "1 is the least"),
        (["turns", "show", "9" * 20], "9223372036854775807 is the most"),
        (["turns", "show", "9" * 5000], "is not a whole number"),
        (["history", "-n", "\u0663"], "Invalid value for '-n': '\u0663' is not a whole number"),
        (["history", "-n", "1000001"], "1000000 is the most"),
        (["status", "--history", "-n", "9" * 20], "9223372036854775807 is the most"),
        (["kv", "ls", "--limit", "x"], "Invalid value for '--limit': 'x' is not a whole number"),
        (["kv", "set", "k", "1", "--if-revision", "-1"], "'--if-revision': 0 is the least"),
    ],
)
def test_what_is_no_number_is_told_plainly(
    bare: CommandLine, arguments: list[str], told: str
) -> None:
    done = bare(*arguments)
    assert (done.code, done.out, len(done.err.splitlines())) == (2, "", 1)
    assert told in done.err


def test_the_help_of_all_tells_codes_variables_and_examples(bare: CommandLine) -> None:
    text = bare("-h").out
    assert {path[0] for path in PATHS if path} == set(re.findall(r"^  (\w+)  ", text, re.M))
    _, _, table = text.partition("Exit codes:")
    codes = {int(code) for code in re.findall(r"\b\d+\b", table.partition("Environment:")[0])}
    assert codes == {0, 2, 3, 4, 5, 6, 8, 65, 66, 69, 74, 75, 77, 78, 124, 130, 141, 143}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    leaves = set(kinds) - {errors.AssistantError}
    assert {vars(kind)["exit_code"] for kind in leaves if "exit_code" in vars(kind)} <= codes
    for name in (
        "ASSISTANT_DATABASE_URL",
        "DATABASE_URL",
        "ASSISTANT_HOME",
        "ASSISTANT_MODEL",
        "ASSISTANT_HEARTBEAT",
        "ASSISTANT_TURN_TIMEOUT",
        "NO_COLOR",
    ):
        assert re.search(rf"\b{name}\b", text)
    examples = re.findall(r"^ +assistant (\w+)", text.partition("Examples:")[2], re.M)
    assert len(examples) >= 3
    assert set(examples) <= {path[0] for path in PATHS if path}


@pytest.mark.parametrize("group", [[], ["kv"], ["schedule"], ["db"]])
def test_without_a_command_the_help_is_shown(bare: CommandLine, group: list[str]) -> None:
    done = bare(*group)
    assert (done.code, done.out) == (2, "")
    # A full stop at its end may be missing.
    assert done.err.strip() in bare(*group, "--help").out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["bogus"], "No such command 'bogus'; see `assistant --help`"),
        (["kv", "bogus"], "No such command 'bogus'; see `assistant kv --help`"),
        (["--bogus"], "No such option: --bogus; see `assistant --help`"),
        (["status", "--bogus"], "No such option: --bogus; see `assistant status --help`"),
        (["report", "backup"], "Missing argument 'status'; see `assistant report --help`"),
        (["report", "a", "idle", "b", "c"], "see `assistant report --help`"),
    ],
)
def test_what_is_no_command_line_is_refused_in_one_line(
    bare: CommandLine, arguments: list[str], complaint: str
) -> None:
    done = bare(*arguments)
    assert (done.code, done.out, len(done.err.splitlines())) == (2, "", 1)
    assert done.err.startswith("assistant: ")
    assert done.err.endswith(f"{complaint}\n")


def test_the_version_is_printed(bare: CommandLine) -> None:
    done = bare("--version")
    assert (done.code, done.out, done.err) == (0, f"assistant {__version__}\n", "")


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("assistant s", ["send", "status", "schedule"]),
        ("assistant kv ex", ["exists", "export"]),
        ("assistant kv get no", ["notes/a:1", "notes/b", "nothing"]),
        ("assistant status b", ["backup", "beacon"]),
        ("assistant wait beacon ba", ["backup"]),
        ("assistant track ", ["backup", "beacon"]),
        ("assistant report backup ", ["idle", "running", "failed"]),
        ("assistant wait backup --for st", ["stale", "stopped"]),
        ("assistant wait backup --for idle,f", ["idle,failed"]),
    ],
)
def test_bash_completes_commands_keys_and_agents(
    filled: CommandLine, line: str, offered: list[str]
) -> None:
    assert complete_bash(filled, line) == offered


def test_zsh_completes_commands_keys_and_agents(filled: CommandLine) -> None:
    assert '"status":"' in complete_zsh(filled, "assistant st")
    keys = complete_zsh(filled, "assistant kv get notes/")
    assert keys == '_arguments \'*: :(("notes/a\\\\:1"\n"notes/b"))\''
    assert complete_zsh(filled, "assistant report b") == (
        '_arguments \'*: :(("backup"\n"beacon"))\''
    )
    assert complete_zsh(filled, "assistant kv get zzz") == "_files"


@pytest.mark.skipif(
    not SCRIPT.exists() or shutil.which("bash") is None, reason="needs bash and the script"
)
@pytest.mark.parametrize(
    ("line", "word", "offered"),
    [
        ("assistant kv get notes/", "notes/", ["notes/a:1", "notes/b"]),
        ("assistant kv get notes/a:", "", ["1"]),
        ("assistant kv get at@", "", ["home"]),
        ("assistant kv get at@h", "h", ["home"]),
        ("assistant kv get 'notes/a:", "notes/a:", ["notes/a:1"]),
        ("assistant report backup ", "", ["idle", "running", "failed"]),
        ("assistant wait backup --for=i", "i", ["idle"]),
        ("assistant send 'a: b' --conv", "--conv", ["--conversation"]),
        ("assistant kv get zzz", "zzz", [""]),
    ],
)
def test_the_completion_that_bash_is_given_works_in_bash(
    filled: CommandLine, line: str, word: str, offered: list[str]
) -> None:
    filled("kv", "set", "at@home", "1")
    # The cursor may stand before the end.
    program = (
        'eval "$("$0" --show-completion bash)"; COMP_LINE="$1 tail"; COMP_POINT=${#1}; '
        '_assistant_completion "$0" "$2"; printf "%s\\n" "${COMPREPLY[@]}"; complete -p assistant'
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", program, str(SCRIPT), line, word],
        env=filled.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    *found, registered = done.stdout.splitlines()
    assert (found, done.stderr) == (offered, "")
    assert registered == "complete -o default -F _assistant_completion assistant"


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("assistant --database-url URL kv get no", ["notes/a:1", "notes/b", "nothing"]),
        ("assistant status --color never --database-url=URL b", ["backup", "beacon"]),
        ("assistant kv get --database-url ", []),
    ],
)
def test_completion_asks_the_database_of_the_line(
    filled: CommandLine, dsn: str, line: str, offered: list[str]
) -> None:
    filled.environment["ASSISTANT_DATABASE_URL"] = "nonsense"
    assert complete_bash(filled, line.replace("URL", shlex.quote(dsn))) == offered


@pytest.mark.parametrize("line", ["assistant track backup ls ", "assistant kv watch notes/b ls "])
def test_completion_writes_no_error_on_a_line_that_is_not_done(
    filled: CommandLine, line: str
) -> None:
    assert complete_bash(filled, line) == []


@pytest.mark.parametrize("settings", [{}, {"ASSISTANT_DATABASE_URL": "nonsense s3cret"}])
def test_without_a_database_completion_offers_commands_and_starts_nothing(
    bare: CommandLine, settings: dict[str, str]
) -> None:
    bare.environment.update(settings)
    assert complete_bash(bare, "assistant kv get ") == []
    assert complete_bash(bare, "assistant status ") == []
    assert complete_bash(bare, "assistant do") == ["doctor"]
    assert not Path(bare.environment["ASSISTANT_HOME"]).exists()


def test_completion_does_not_wait_for_a_server_that_says_nothing(bare: CommandLine) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        bare.environment["ASSISTANT_DATABASE_URL"] = f"host=127.0.0.1 port={port}"
        began = time.monotonic()
        assert complete_bash(bare, "assistant kv get ") == []
    assert time.monotonic() < began + 5
