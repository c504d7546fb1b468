"""Keys: written by many at once, watched, exported and imported."""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psycopg

from assistant_cli.server_account import bundled_programs

from .board import pgbench_upsert
from .measuring import Contestants, Goal, Row, Size
from .server import ASSISTANT, UPSERT, PgBench, Server, opened, rate

WRITERS = 32
_NOTIFYING_UPSERT = f"WITH written AS ({UPSERT}) SELECT pg_notify('raw', %s)"
_PEAK = """\
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@asynccontextmanager
async def distinct(server: Server, size: Size) -> AsyncIterator[Contestants]:
    key = "'key-' || :client_id || '-' || :n % 1000"
    bench = PgBench(server, server.plain(), pgbench_upsert(key), WRITERS)
    async with opened(await server.migrated()) as database:
        watching = asyncio.create_task(_count(database.kv.watch(prefix="key-")))

        async def write(task: int, number: int) -> None:
            value = {"status": "running", "detail": f"step {number}"}
            await database.kv.set(f"key-{task}-{number % 1000}", value)

        yield {
            f"kv.set, {WRITERS} tasks, watched": partial(rate, write, WRITERS, size.seconds),
            f"pgbench, {WRITERS} clients, no NOTIFY": partial(bench.rate, size.seconds),
        }
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching


async def _count(changes: AsyncGenerator[Any]) -> int:
    async with aclosing(changes):
        return len([None async for _ in changes])


@asynccontextmanager
async def watch(
    server: Server, size: Size, *, place: Callable[[Sequence[float]], float]
) -> AsyncIterator[Contestants]:
    plain, dsn = server.plain(), await server.migrated()
    async with (
        opened(dsn) as database,
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as writer,
        await psycopg.AsyncConnection.connect(plain, autocommit=True) as raw_writer,
        await psycopg.AsyncConnection.connect(plain, autocommit=True) as raw_reader,
    ):
        await raw_reader.execute("LISTEN raw")
        await writer.execute(UPSERT, ("watched", "0"))
        changes = database.kv.watch("watched")
        await anext(changes)

        async def watched() -> float:
            async def write(number: int) -> None:
                await writer.execute(UPSERT, ("watched", str(number)), prepare=True)

            return place(await _deliveries(write, lambda: anext(changes), size.events))

        async def raw() -> float:
            notifies = raw_reader.notifies()

            async def write(number: int) -> None:
                await raw_writer.execute(
                    _NOTIFYING_UPSERT, ("watched", str(number), str(number)), prepare=True
                )

            latencies = await _deliveries(write, lambda: anext(notifies), size.events)
            await notifies.aclose()
            return place(latencies)

        async with aclosing(changes):
            yield {"kv.watch, the value": watched, "LISTEN, the payload": raw}


async def _deliveries(
    write: Callable[[int], Awaitable[None]], receive: Callable[[], Awaitable[Any]], events: int
) -> list[float]:
    """The milliseconds from before each write until it is received."""
    latencies = []
    for _ in range(events):
        receiving = asyncio.ensure_future(receive())
        await asyncio.sleep(0)
        start = time.perf_counter()
        await write(time.monotonic_ns())
        await receiving
        latencies.append((time.perf_counter() - start) * 1000)
    return latencies


def _p99(latencies: Sequence[float]) -> float:
    return statistics.quantiles(latencies, n=100, method="inclusive")[98]


@asynccontextmanager
async def incoming(server: Server, size: Size) -> AsyncIterator[Contestants]:
    dsn = await server.migrated()
    lines, columns = _write_keys(server.home, size.keys)
    copy = _psql(dsn, f"\\copy kv (key, value) FROM '{columns}' (FORMAT csv, QUOTE '''')")

    async def taken(command: Sequence[str | Path]) -> float:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("TRUNCATE kv")
            connection.execute("CHECKPOINT")
        return _keys_a_second(command, server.environment(dsn), size.keys)

    yield {
        f"assistant kv import, {size.keys:,} keys": partial(
            taken, [ASSISTANT, "kv", "import", lines]
        ),
        "psql \\copy": partial(taken, copy),
    }


@asynccontextmanager
async def outgoing(server: Server, size: Size) -> AsyncIterator[Contestants]:
    dsn = await _full(server, size.keys)
    copy = _psql(dsn, f"\\copy kv (key, value) TO '{server.home / 'copied'}'")

    async def taken(command: Sequence[str | Path]) -> float:
        return _keys_a_second(command, server.environment(dsn), size.keys)

    yield {
        f"assistant kv export, {size.keys:,} keys": partial(taken, [ASSISTANT, "kv", "export"]),
        "psql \\copy": partial(taken, copy),
    }


@asynccontextmanager
async def memory(server: Server, size: Size, *, command: str) -> AsyncIterator[Contestants]:
    dsn = await _full(server, size.keys)
    lines, _ = _write_keys(server.home, size.keys)
    arguments: list[str | Path] = [ASSISTANT, "kv", command]
    arguments += [lines] if command == "import" else []

    async def peak() -> float:
        return _peak_memory(arguments, server.environment(dsn))

    yield {f"assistant kv {command}, {size.keys:,} keys": peak}


def _peak_memory(command: Sequence[str | Path], environment: dict[str, str]) -> float:
    """The megabytes a process had at most; the parent that forks it must be small."""
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, *command],
        env=environment,
        stdout=subprocess.PIPE,
        check=True,
    )
    # Linux counts in kibibytes, macOS in bytes.
    return int(done.stdout) / (1 << (20 if sys.platform == "darwin" else 10))


async def _full(server: Server, keys: int) -> str:
    return await server.filled(f"full-{keys}", fill_keys(keys))


def fill_keys(count: int) -> str:
    """A statement that makes so many keys, in groups of a hundred."""
    return (
        "INSERT INTO kv (key, value) SELECT format('group-%s/key-%s', n / 100, n), "
        "jsonb_build_object('n', n, 'text', 'about so much text') "
        f"FROM generate_series(1, {count}) n"
    )


def _write_keys(folder: Path, count: int) -> tuple[Path, Path]:
    """The same keys as lines for `kv import`, and as columns for `\\copy`."""
    lines, columns = folder / f"keys-{count}.jsonl", folder / f"keys-{count}.csv"
    if not lines.exists():
        with lines.open("w", encoding="utf-8") as ours, columns.open("w", encoding="utf-8") as csv:
            for n in range(1, count + 1):
                key, value = (
                    f"group-{n // 100}/key-{n}",
                    f'{{"n": {n}, "text": "about so much text"}}',
                )
                ours.write(f'{{"key": "{key}", "value": {value}}}\n')
                csv.write(f"{key},'{value}'\n")
    return lines, columns


def _psql(dsn: str, command: str) -> list[str | Path]:
    return [bundled_programs() / "psql", "-Xqc", command, dsn]


def _keys_a_second(command: Sequence[str | Path], environment: dict[str, str], keys: int) -> float:
    start = time.perf_counter()
    with Path("/dev/null").open("wb") as nowhere:
        subprocess.run(command, env=environment, stdout=nowhere, stderr=nowhere, check=True)
    return keys / (time.perf_counter() - start)


ROWS = {
    "kv-set": Row("`kv.set`, distinct keys, 32 at once", "/s", distinct, Goal(0.5, at_least=True)),
    "watch-p50": Row(
        "watch: written to delivered, p50", "ms", partial(watch, place=statistics.median), Goal(2)
    ),
    "watch-p99": Row("watch: written to delivered, p99", "ms", partial(watch, place=_p99), Goal(3)),
    "import": Row("`kv import`", "/s", incoming, Goal(0.5, at_least=True)),
    "export": Row("`kv export`", "/s", outgoing, Goal(0.5, at_least=True)),
    "import-memory": Row(
        "`kv import`, peak memory", "MB", partial(memory, command="import"), Goal(100)
    ),
    "export-memory": Row(
        "`kv export`, peak memory", "MB", partial(memory, command="export"), Goal(100)
    ),
}
