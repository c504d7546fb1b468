"""Keys that the shell completes: offered as text that steers no terminal and runs nothing."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import psycopg
import pytest

from .conftest import CommandLine
from .hostile_text import HOSTILE
from .test_terminal_safety import assert_shown, put


def complete(assistant: CommandLine, sql: psycopg.Connection[Any], shell: str, key: str) -> str:
    """What completes `assistant kv get q` in a shell where only `key` starts so."""
    put(sql, key, 1)
    facts = {
        "_ASSISTANT_COMPLETE": f"complete_{shell}",
        "_TYPER_COMPLETE_ARGS": "assistant kv get q",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        "COMP_WORDS": "assistant kv get q",
        "COMP_CWORD": "3",
    }
    return CommandLine({**assistant.environment, **facts})().out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_offers_keys(
    assistant: CommandLine, sql: psycopg.Connection[Any], shell: str
) -> None:
    assert "quick\u00fc" in complete(assistant, sql, shell, "quick\u00fc")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_steers_no_terminal(
    assistant: CommandLine, sql: psycopg.Connection[Any], shell: str
) -> None:
    assert_shown(complete(assistant, sql, shell, f"q{HOSTILE}"), [])


def test_completion_runs_nothing(
    assistant: CommandLine, sql: psycopg.Connection[Any], tmp_path: Path
) -> None:
    script = complete(assistant, sql, "zsh", f"q\\$(touch {tmp_path}/ran)")
    # zsh's own _arguments evaluates what stands in double parentheses like this.
    arguments = '_arguments() { local words=${1#*((}; eval "words=( ${words%))} )"; }'
    subprocess.run(["bash", "-c", f"{arguments}\n{script}"], check=False)
    assert not (tmp_path / "ran").exists()
