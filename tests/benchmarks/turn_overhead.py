"""What a turn costs beside the bare SDK.

Ours is timed from the moment a message is committed, with `assistant run` hosting in another
process; the SDK from the moment it is called. Both to the first text and to the whole reply.
"""

from __future__ import annotations

import itertools
import multiprocessing
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection

from openai import AsyncOpenAI

from assistant_cli.store import inbox
from assistant_cli.store.database import Database

from ..openai_server import drips, serving
from .measuring import Contestants, Row, Size
from .server import Server, opened, running_assistant

MODEL = "gpt-4o-mini"
PIECES = 20
PIECE_SECONDS = 0.005


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
    end = time.perf_counter()
    return _timing(start, seen[0] if seen else end, end)


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
async def turns(
    server: Server, size: Size, *, part: Callable[[Timing], float]
) -> AsyncIterator[Contestants]:
    dsn = await server.migrated()
    numbers = itertools.count()
    with server_in_a_process() as base_url:
        client = AsyncOpenAI(base_url=base_url, api_key="none")
        model = f"openai:{MODEL}"
        async with (
            running_assistant(server, dsn, "--model", model, ASSISTANT_BASE_URL=base_url),
            opened(dsn) as database,
            client,
        ):

            async def turn() -> Timing:
                return await time_turn(database, "hello", f"talk {next(numbers)}")

            async def sdk() -> Timing:
                return await time_sdk(client, "hello")

            # The first ones open connections and import what is used.
            await turn()
            await sdk()
            yield {"turn": partial(_median, turn, part), "SDK": partial(_median, sdk, part)}


async def _median(ask: Callable[[], Awaitable[Timing]], part: Callable[[Timing], float]) -> float:
    return statistics.median([part(await ask()) for _ in range(3)])


ROWS = {
    "turn-first": Row(
        "a turn with a language model, to the first text",
        "ms",
        partial(turns, part=lambda timing: timing.first),
        samples=True,
    ),
    "turn-whole": Row(
        "a turn with a language model, to the whole reply",
        "ms",
        partial(turns, part=lambda timing: timing.whole),
        samples=True,
    ),
}
