"""The one server on which everything is measured, and the programs that talk to it."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from assistant_cli.embedded_postgres import EmbeddedPostgres
from assistant_cli.server_account import bundled_programs
from assistant_cli.store.database import Database
from assistant_cli.store.migrations import migrate

from ..conftest import CommandLine

ASSISTANT = Path(sys.executable).with_name("assistant")
UPSERT = (
    "INSERT INTO kv (key, value) VALUES (%s, %s) ON CONFLICT (key) DO UPDATE SET value = "
    "excluded.value"
)
_PLAIN_KV = "CREATE TABLE kv (key text PRIMARY KEY, value jsonb NOT NULL)"


@dataclass
class Server:
    """An embedded server, durable as it comes, with databases made when they are asked for."""

    home: Path
    admin_dsn: str
    _made: dict[str, str] = field(default_factory=dict)

    def create_database(self, name: str, *statements: str) -> str:
        """A new database; its connection string."""
        identifier = sql.Identifier(name)
        with psycopg.connect(self.admin_dsn, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} (FORCE)").format(identifier))
            connection.execute(sql.SQL("CREATE DATABASE {}").format(identifier))
        dsn = make_conninfo(self.admin_dsn, dbname=name)
        with psycopg.connect(dsn, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())
        return dsn

    def plain(self) -> str:
        """A new database with a kv table as any program would make it, and no triggers."""
        return self.create_database("plain", _PLAIN_KV)

    async def migrated(self, name: str = "assistant") -> str:
        """A new database that is set up for the program."""
        dsn = self.create_database(name)
        database = Database(dsn)
        await migrate(database)
        await database.close()
        return dsn

    async def filled(self, name: str, *statements: str) -> str:
        """A database that is set up and filled, the same one whenever it is asked for."""
        if name not in self._made:
            dsn = await self.migrated(name)
            with psycopg.connect(dsn, autocommit=True) as connection:
                for statement in [*statements, "VACUUM ANALYZE", "CHECKPOINT"]:
                    connection.execute(statement.encode())
            self._made[name] = dsn
        return self._made[name]

    def delay_flushes(self, milliseconds: float) -> None:
        """Have each flush of the log take so much longer from now on, as on a slower disk.

        PostgreSQL waits like this before it flushes, for others to share the flush, where
        `commit_siblings` transactions are open.
        """
        microseconds = round(milliseconds * 1000)
        with psycopg.connect(self.admin_dsn, autocommit=True) as connection:
            connection.execute(f"ALTER SYSTEM SET commit_delay = {microseconds}".encode())
            connection.execute("ALTER SYSTEM SET commit_siblings = 0")
            connection.execute("SELECT pg_reload_conf()")
            while self._shown("commit_delay") != microseconds:
                time.sleep(0.01)

    def _shown(self, setting: str) -> int:
        """What a new session finds."""
        with psycopg.connect(self.admin_dsn) as connection:
            row = connection.execute(
                "SELECT setting::integer FROM pg_settings WHERE name = %s", (setting,)
            ).fetchone()
        assert row is not None
        return int(row[0])

    def environment(self, dsn: str, **more: str) -> dict[str, str]:
        """An environment that knows nothing but a database."""
        return {
            "PATH": "/usr/bin:/bin",
            "HOME": str(self.home),
            "ASSISTANT_HOME": str(self.home),
            "ASSISTANT_DATABASE_URL": dsn,
            **more,
        }


@asynccontextmanager
async def started_server() -> AsyncIterator[Server]:
    """The server, up until the block ends, and then gone with its data."""
    home = Path(tempfile.mkdtemp(prefix="assistant-benchmark-", dir="/tmp"))
    # A server that runs for root must be able to reach its folder.
    home.chmod(0o711)  # noqa: ASYNC240 (nothing else runs)
    embedded = EmbeddedPostgres(home)
    try:
        await embedded.start(lambda _: None)
        yield Server(home, make_conninfo(embedded.dsn(), dbname="postgres"))
    finally:
        await embedded.stop()
        shutil.rmtree(home)


@asynccontextmanager
async def opened(dsn: str, *, limit: int = 8) -> AsyncIterator[Database]:
    """A database as the library opens it."""
    database = Database(dsn, limit=limit)
    yield database
    await database.close()


@asynccontextmanager
async def running_assistant(
    server: Server, dsn: str, *arguments: str, **environment: str
) -> AsyncIterator[subprocess.Popen[str]]:
    """`assistant run`, hosting in a process of its own."""
    assistant = CommandLine(server.environment(dsn, **environment))
    try:
        process = await asyncio.to_thread(assistant.start_run, *arguments)
        assert process.stderr is not None
        # A log that nobody reads would stop it once the pipe is full.
        Thread(target=process.stderr.read, daemon=True).start()
        yield process
    finally:
        assistant.end_all()


@asynccontextmanager
async def started(*command: str | Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """A program that is ended with the block; its stdout is a pipe."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.kill()
        await process.communicate()


class PgBench:
    """`pgbench` with one statement, over and over, prepared; what it reports."""

    def __init__(self, server: Server, dsn: str, statement: str, clients: int) -> None:
        self._script = server.home / f"pgbench-{clients}.sql"
        self._script.write_text(statement + ";\n", "utf-8")
        self._dsn = dsn
        self._clients = clients

    async def rate(self, seconds: float) -> float:
        """Transactions a second."""
        return float(self._run(seconds, r"tps = ([\d.]+)"))

    async def latency(self, seconds: float) -> float:
        """The mean latency in milliseconds."""
        return float(self._run(seconds, r"latency average = ([\d.]+) ms"))

    def _run(self, seconds: float, wanted: str) -> str:
        command: list[str | Path] = [bundled_programs() / "pgbench", "-n", "-M", "prepared"]
        command += [
            "-f",
            self._script,
            "-c",
            str(self._clients),
            "-j",
            "2",
            "-T",
            str(max(1, round(seconds))),
        ]
        done = subprocess.run([*command, self._dsn], capture_output=True, text=True, check=True)
        found = re.search(wanted, done.stdout)
        assert found is not None, done.stdout
        return found[1]


async def time_process(command: Sequence[str | Path], environment: Mapping[str, str]) -> float:
    """The milliseconds that a whole process takes."""
    start = time.perf_counter()
    subprocess.run(  # noqa: ASYNC221 (nothing else may run)
        command, env=environment, stdout=subprocess.PIPE, check=True
    )
    return (time.perf_counter() - start) * 1000


async def rate(operation: Callable[[int, int], Awaitable[object]], tasks: int, s: float) -> float:
    """Calls a second of an operation in so many tasks; it is given its task and its turn."""
    deadline = time.perf_counter() + s

    async def repeat(task: int) -> int:
        turn = 0
        while time.perf_counter() < deadline:
            await operation(task, turn)
            turn += 1
        return turn

    start = time.perf_counter()
    counts = await asyncio.gather(*(repeat(task) for task in range(tasks)))
    return sum(counts) / (time.perf_counter() - start)


async def median_latency(operation: Callable[[int], Awaitable[object]], seconds: float) -> float:
    """The median milliseconds of an operation that is repeated; it is given its turn."""
    latencies: list[float] = []
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        start = time.perf_counter()
        await operation(len(latencies))
        latencies.append(time.perf_counter() - start)
    return sorted(latencies)[len(latencies) // 2] * 1000
