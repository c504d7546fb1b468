"""Updates of the board, beside upserts of the same key by programs that only upsert."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.types.json import Jsonb

from assistant_cli.store.board import StatusBoard

from .measuring import Contestants, Goal, Row, Size
from .server import UPSERT, PgBench, Server, median_latency, opened, rate

UPDATERS = 32
NODE_PG = os.environ.get("ASSISTANT_TEST_NODE_PG")
_UPSTREAM = Path(__file__).with_name("upstream.js")
_BOARD = (
    '{"conversation": {"status": "idle", "detail": null}, '
    '"heartbeat": {"status": "running", "detail": "step %s"}}'
)


def pgbench_upsert(key: str) -> str:
    """The upsert as pgbench writes it, of another value each time."""
    value = _BOARD % "' || :n || '"
    variable = "\\set n random(1, 1000000)\n"
    return variable + UPSERT.replace("%s", key, 1).replace("%s", f"('{value}')::jsonb", 1)


def entry(number: int) -> dict[str, str]:
    """An entry unlike the one before."""
    return {"status": "running", "detail": f"step {number}"}


@asynccontextmanager
async def one(server: Server, size: Size) -> AsyncIterator[Contestants]:
    plain = server.plain()
    bench = PgBench(server, plain, pgbench_upsert("'board'"), 1)
    async with (
        opened(await server.migrated()) as database,
        await psycopg.AsyncConnection.connect(plain, autocommit=True) as connection,
    ):
        board = StatusBoard(database)

        async def upsert(number: int) -> None:
            value = {"conversation": {"status": "idle"}, "heartbeat": entry(number)}
            await connection.execute(UPSERT, ("board", Jsonb(value)), prepare=True)

        async def update(number: int) -> None:
            await board.update("heartbeat", entry(number))

        yield {
            "board.update": partial(median_latency, update, size.seconds),
            "psycopg, one upsert": partial(median_latency, upsert, size.seconds),
            "pgbench, 1 client": partial(bench.latency, size.seconds),
        }


@asynccontextmanager
async def in_one_process(server: Server, size: Size) -> AsyncIterator[Contestants]:
    bench = PgBench(server, server.plain(), pgbench_upsert("'board'"), UPDATERS)
    async with opened(await server.migrated()) as database:
        board = StatusBoard(database)

        async def update(task: int, number: int) -> None:
            await board.update(f"agent-{task}", entry(number))

        yield {
            f"board.update, {UPDATERS} tasks": partial(rate, update, UPDATERS, size.seconds),
            f"pgbench, {UPDATERS} clients, same key": partial(bench.rate, size.seconds),
        }


@asynccontextmanager
async def in_processes(server: Server, size: Size) -> AsyncIterator[Contestants]:
    bench = PgBench(server, server.plain(), pgbench_upsert("'board'"), UPDATERS)
    dsn = await server.migrated()
    command = [sys.executable, "-m", __name__, dsn]
    pipe = asyncio.subprocess.PIPE
    processes = [
        await asyncio.create_subprocess_exec(*command, f"agent-{number}", stdin=pipe, stdout=pipe)
        for number in range(UPDATERS)
    ]

    async def answers() -> list[float]:
        lines = [await process.stdout.readline() for process in processes if process.stdout]
        return [float(line) for line in lines]

    async def update() -> float:
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(f"{size.seconds}\n".encode())
        return sum(await answers())

    await answers()
    try:
        yield {
            f"board.update, {UPDATERS} processes": update,
            f"pgbench, {UPDATERS} clients, same key": partial(bench.rate, size.seconds),
        }
    finally:
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()
            await process.wait()


@asynccontextmanager
async def beside_upstream(
    server: Server, size: Size, *, updaters: int
) -> AsyncIterator[Contestants]:
    """The latency of one updater, or what many do in a second; alone where there is no node-pg."""
    plain = server.plain()
    async with opened(await server.migrated()) as database:
        board = StatusBoard(database)

        async def update(task: int, number: int) -> None:
            await board.update(f"agent-{task}", entry(number))

        async def ours() -> float:
            if updaters > 1:
                return await rate(update, updaters, size.seconds)
            return await median_latency(partial(update, 0), size.seconds)

        async def theirs() -> float:
            figures = _run_upstream(plain, updaters, size.seconds)
            return figures[0] if updaters > 1 else figures[1]

        contestants: Contestants = {"board.update": ours}
        yield {**contestants, "upstream, node-pg": theirs} if NODE_PG else contestants


def _run_upstream(dsn: str, updaters: int, seconds: float) -> list[float]:
    """The updates a second, and the median milliseconds of one."""
    found = conninfo_to_dict(dsn)
    where = ",".join(str(found[name]) for name in ("host", "port", "dbname", "user"))
    done = subprocess.run(
        ["node", _UPSTREAM, where, str(updaters), str(seconds)],
        env={**os.environ, "NODE_PATH": f"{NODE_PG}/node_modules"},
        capture_output=True,
        text=True,
        check=True,
    )
    return [float(figure) for figure in done.stdout.split()]


async def update_on_request(dsn: str, agent: str) -> None:
    """Update as long as each line of stdin says, in seconds; print the updates a second."""
    async with opened(dsn) as database:
        board = StatusBoard(database)

        async def update(_: int, number: int) -> None:
            await board.update(agent, entry(number))

        await update(0, 0)
        _print(0)
        while line := await asyncio.to_thread(sys.stdin.readline):
            _print(await rate(update, 1, float(line)))


def _print(figure: float) -> None:
    sys.stdout.write(f"{figure}\n")
    sys.stdout.flush()


ROWS = {
    "board-1": Row("board update, one updater", "ms", one, Goal(1.3)),
    "board-32": Row(
        "board updates, 32 updaters in one process", "/s", in_one_process, Goal(10, at_least=True)
    ),
    "board-32-processes": Row(
        "board updates, 32 processes", "/s", in_processes, Goal(0.7, at_least=True)
    ),
    "board-upstream": Row(
        "board update, one updater, and the upstream system's",
        "ms",
        partial(beside_upstream, updaters=1),
    ),
    "board-32-upstream": Row(
        "board updates, 32 updaters in one process, and the upstream system's",
        "/s",
        partial(beside_upstream, updaters=UPDATERS),
    ),
}

if __name__ == "__main__":
    asyncio.run(update_on_request(*sys.argv[1:]))
