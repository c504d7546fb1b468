"""What a turn costs beside the bare SDK, on the same server in the same run.

    python -m tests.benchmarks.turn_overhead [PAIRS]

Ours is timed from the moment a message is committed, with `assistant run` hosting in another
process; the SDK from the moment it is called. Both to the first text and to the whole reply.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from openai import AsyncOpenAI

from assistant_cli.embedded_postgres import EmbeddedPostgres
from assistant_cli.store import inbox
from assistant_cli.store.database import Database

from ..conftest import CommandLine
from ..openai_server import drips, serving

MODEL = "gpt-4o-mini"
PIECES = 20
PIECE_SECONDS = 0.005
WARM_UP = 5


@dataclass(frozen=True)
class Timing:
    """Milliseconds to the first text and to the whole reply."""

    first: float
    whole: float


async def time_sdk(client: AsyncOpenAI, text: str) -> Timing:
    start = time.perf_counter()
    first = 0.0
    stream = await client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": text}], stream=True
    )
    async for chunk in stream:
        if not first and chunk.choices and chunk.choices[0].delta.content:
            first = time.perf_counter()
    return _timing(start, first, time.perf_counter())


async def time_turn(database: Database, text: str, conversation: str) -> Timing:
    seen: list[float] = []
    message = await inbox.put_message(database, text, conversation=conversation)
    start = time.perf_counter()
    await inbox.wait_for_reply(database, message, lambda _: seen.append(time.perf_counter()))
    return _timing(start, seen[0], time.perf_counter())


def _timing(start: float, first: float, end: float) -> Timing:
    return Timing((first - start) * 1000, (end - start) * 1000)


def _serve(ready: Connection) -> None:
    with serving() as server:
        server.always(drips(PIECES, PIECE_SECONDS))
        ready.send(server.base_url)
        ready.recv()


@contextmanager
def server_in_a_process() -> Iterator[str]:
    """A model's server that shares no interpreter with those that are timed; its address."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(there,))
    process.start()
    there.close()
    try:
        yield here.recv()
    finally:
        here.send(None)
        process.join()


@asynccontextmanager
async def running_assistant(base_url: str) -> AsyncIterator[Database]:
    """A database of its own, with `assistant run` on it."""
    home = Path(tempfile.mkdtemp(prefix="assistant-benchmark-", dir="/tmp"))
    # A server that runs for root must be able to reach its folder.
    os.chmod(home, 0o711)  # noqa: PTH101
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "HOME") if name in os.environ}
    assistant = CommandLine({**kept, "ASSISTANT_HOME": str(home), "ASSISTANT_BASE_URL": base_url})
    server = EmbeddedPostgres(home)
    try:
        await asyncio.to_thread(assistant.start_run, "--model", f"openai:{MODEL}")
        database = Database(server.dsn())
        yield database
        await database.close()
    finally:
        assistant.end_all()
        await server.stop()
        shutil.rmtree(home)


async def measure(pairs: int) -> tuple[list[Timing], list[Timing]]:
    ours, theirs = [], []
    with server_in_a_process() as base_url:
        client = AsyncOpenAI(base_url=base_url, api_key="none")
        async with running_assistant(base_url) as database, client:
            for number in range(WARM_UP + pairs):
                ours.append(await time_turn(database, "hello", f"talk {number}"))
                theirs.append(await time_sdk(client, "hello"))
    return ours[WARM_UP:], theirs[WARM_UP:]


def report(name: str, sdk: list[float], turn: list[float]) -> None:
    added = [ours - theirs for ours, theirs in zip(turn, sdk, strict=True)]
    cells = (f"{statistics.median(x):7.1f} ({min(x):.1f}-{max(x):.1f})" for x in (sdk, turn, added))
    sys.stdout.write(f"{name:12}" + "".join(f"{cell:>24}" for cell in cells) + "\n")


def main() -> None:
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    ours, theirs = asyncio.run(measure(pairs))
    sys.stdout.write(f"{pairs} pairs, ms: median (range)\n")
    sys.stdout.write(f"{'':12}{'SDK':>24}{'turn':>24}{'added':>24}\n")
    report("first text", [t.first for t in theirs], [t.first for t in ours])
    report("whole reply", [t.whole for t in theirs], [t.whole for t in ours])


if __name__ == "__main__":
    main()
