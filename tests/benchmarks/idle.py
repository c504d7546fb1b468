"""What `run` needs while nothing happens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psutil
import psycopg

from .measuring import Contestants, Goal, Row, Size
from .server import Server, running_assistant

_TRANSACTIONS = (
    "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = 'assistant'"
)


@asynccontextmanager
async def memory(server: Server, size: Size) -> AsyncIterator[Contestants]:
    dsn = await server.migrated()
    async with running_assistant(server, dsn) as process:

        async def resident() -> float:
            await asyncio.sleep(min(2.0, size.idle_seconds))
            return psutil.Process(process.pid).memory_info().rss / (1 << 20)

        yield {"assistant run": resident}


@asynccontextmanager
async def processor(server: Server, size: Size) -> AsyncIterator[Contestants]:
    dsn = await server.migrated()
    async with running_assistant(server, dsn) as process:
        watched = psutil.Process(process.pid)

        async def used() -> float:
            before = watched.cpu_times()
            await asyncio.sleep(size.idle_seconds)
            after = watched.cpu_times()
            seconds = after.user + after.system - before.user - before.system
            return 100 * seconds / size.idle_seconds

        yield {"assistant run": used}


@asynccontextmanager
async def queries(server: Server, size: Size) -> AsyncIterator[Contestants]:
    dsn = await server.migrated()
    # From another database, so that looking is not counted.
    async with (
        running_assistant(server, dsn),
        await psycopg.AsyncConnection.connect(server.admin_dsn, autocommit=True) as connection,
    ):

        async def transactions() -> float:
            row = await (await connection.execute(_TRANSACTIONS)).fetchone()
            assert row is not None
            return float(row[0])

        async def counted() -> float:
            before = await transactions()
            await asyncio.sleep(size.idle_seconds)
            return (await transactions() - before) / size.idle_seconds

        yield {"assistant run": counted}


ROWS = {
    "idle-memory": Row("`run`, idle: resident memory", "MB", memory, Goal(60)),
    "idle-cpu": Row("`run`, idle: of a core", "%", processor, Goal(0.5)),
    "idle-queries": Row("`run`, idle: transactions", "/s", queries, Goal(1)),
}
