"""The job queues that the inbox is measured against: a no-op job in a worker of their own.

python -m tests.benchmarks.peers procrastinate|pgqueuer DSN
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import psycopg

Send = Callable[[int, int], Awaitable[object]]


def create_procrastinate_app(dsn: str) -> Any:
    """The app with its one task, `nothing`."""
    from procrastinate import App, PsycopgConnector

    app = App(connector=PsycopgConnector(conninfo=dsn, min_size=1, max_size=8))

    @app.task(name="nothing")
    async def nothing(text: str) -> None:
        pass

    return app


@asynccontextmanager
async def procrastinate_sender(dsn: str) -> AsyncIterator[Send]:
    """Puts a job into the queue of procrastinate."""
    app = create_procrastinate_app(dsn)
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        nothing = app.tasks["nothing"]
        yield lambda task, number: nothing.defer_async(text="hello")


@asynccontextmanager
async def pgqueuer_sender(dsn: str) -> AsyncIterator[Send]:
    """Puts a job into the queue of pgqueuer."""
    from pgqueuer import PsycopgDriver, Queries

    async with AsyncExitStack() as stack:
        drivers = []
        for _ in range(8):
            connection = await psycopg.AsyncConnection.connect(dsn, autocommit=True)
            await stack.enter_async_context(connection)
            drivers.append(Queries(PsycopgDriver(connection)))
        await drivers[0].install()
        yield lambda task, number: drivers[task].enqueue("nothing", b"hello")


async def work_procrastinate(dsn: str) -> None:
    """Work off the queue until the process is ended."""
    app = create_procrastinate_app(dsn)
    async with app.open_async():
        await app.run_worker_async(concurrency=8)


async def work_pgqueuer(dsn: str) -> None:
    """Work off the queue until the process is ended."""
    from pgqueuer import Job, PgQueuer

    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        worker = PgQueuer.from_psycopg_connection(connection)

        @worker.entrypoint("nothing")
        async def nothing(job: Job) -> None:
            pass

        await worker.run(batch_size=100)


WORKERS = {"procrastinate": work_procrastinate, "pgqueuer": work_pgqueuer}
SENDERS = {"procrastinate": procrastinate_sender, "pgqueuer": pgqueuer_sender}
LEFT = {
    "procrastinate": "SELECT count(*) FROM procrastinate_jobs WHERE status IN ('todo', 'doing')",
    "pgqueuer": "SELECT count(*) FROM pgqueuer",
}
"""How many jobs are not done yet."""

if __name__ == "__main__":
    asyncio.run(WORKERS[sys.argv[1]](sys.argv[2]))
