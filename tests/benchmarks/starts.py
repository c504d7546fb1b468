"""How long a command takes, as a whole process, beside what Python alone needs for it."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import psycopg

from assistant_cli.server_account import bundled_programs

from .measuring import Contestants, Goal, Row, Size
from .server import ASSISTANT, Server, running_assistant, started, time_process

QUERY = "SELECT value::text FROM public.kv WHERE key = 'status_board'"
IMPORTS = "import typer"
IMPORTS_AND_QUERY = f"""\
import sys, typer, psycopg
with psycopg.connect(sys.argv[1], autocommit=True) as connection:
    print(connection.execute("{QUERY}").fetchone()[0])
"""
IMPORTS_OF_RUN = """\
import asyncio, logging, typer, psycopg
import assistant_cli.cli.run, assistant_cli.runtime, assistant_cli.store.opening
print("imported", flush=True)
"""
_BOARD = (
    'SELECT assistant.write_board(\'[{"conversation": {"status": "idle", "detail": null}, '
    '"heartbeat": {"status": "running", "detail": "writing a recipe"}}]\', \'{}\')'
)


async def _board(server: Server) -> str:
    dsn = await server.migrated()
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(_BOARD.encode())
    return dsn


@asynccontextmanager
async def key_get(server: Server, size: Size) -> AsyncIterator[Contestants]:
    dsn = await _board(server)
    environment = server.environment(dsn)
    psql: list[str | Path] = [bundled_programs() / "psql", "-XAtc", QUERY, dsn]
    yield {
        "assistant kv get": partial(
            time_process, [ASSISTANT, "kv", "get", "status_board"], environment
        ),
        "Python, typer, psycopg, one query": partial(
            time_process, [sys.executable, "-c", IMPORTS_AND_QUERY, dsn], environment
        ),
        "psql -Atc": partial(time_process, psql, environment),
    }


@asynccontextmanager
async def key_get_and_psql(server: Server, size: Size) -> AsyncIterator[Contestants]:
    async with key_get(server, size) as contestants:
        yield {name: contestants[name] for name in ("assistant kv get", "psql -Atc")}


@asynccontextmanager
async def status(server: Server, size: Size) -> AsyncIterator[Contestants]:
    dsn = await _board(server)
    environment = server.environment(dsn)
    yield {
        "assistant status": partial(time_process, [ASSISTANT, "status"], environment),
        "Python, typer, psycopg, one query": partial(
            time_process, [sys.executable, "-c", IMPORTS_AND_QUERY, dsn], environment
        ),
    }


@asynccontextmanager
async def help_text(server: Server, size: Size) -> AsyncIterator[Contestants]:
    environment = server.environment("")
    yield {
        "assistant --help": partial(time_process, [ASSISTANT, "--help"], environment),
        "Python, typer": partial(time_process, [sys.executable, "-c", IMPORTS], environment),
    }


@asynccontextmanager
async def completion(server: Server, size: Size) -> AsyncIterator[Contestants]:
    environment = server.environment("")
    asked = {
        "_ASSISTANT_COMPLETE": "complete_bash",
        "COMP_WORDS": "assistant st",
        "COMP_CWORD": "1",
    }
    yield {
        "completion of a command": partial(time_process, [ASSISTANT], {**environment, **asked}),
        "Python, typer": partial(time_process, [sys.executable, "-c", IMPORTS], environment),
    }


@asynccontextmanager
async def run(server: Server, size: Size) -> AsyncIterator[Contestants]:
    dsn = await server.migrated()

    async def until_hosting() -> float:
        start = time.perf_counter()
        async with running_assistant(server, dsn):
            return (time.perf_counter() - start) * 1000

    async def until_imported() -> float:
        start = time.perf_counter()
        async with started(sys.executable, "-c", IMPORTS_OF_RUN) as process:
            assert process.stdout is not None
            await process.stdout.readline()
            return (time.perf_counter() - start) * 1000

    yield {"run to both agents on the board": until_hosting, "Python, its imports": until_imported}


ROWS = {
    "kv-get": Row("`kv get`, cold", "ms", key_get, Goal(1.15), samples=True),
    "kv-get-psql": Row("`kv get` and `psql`, cold", "ms", key_get_and_psql, samples=True),
    "status": Row("`status`, piped, cold", "ms", status, Goal(1.3), samples=True),
    "help": Row("`--help`", "ms", help_text, Goal(1.15), samples=True),
    "completion": Row("completion", "ms", completion, Goal(1.15), samples=True),
}
RUN_ROWS = {"start": Row("start of `run`", "ms", run, Goal(1.5), samples=True)}
