"""The inbox beside job queues, and one message beside the least that any program would need."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from importlib.util import find_spec

import psycopg

from assistant_cli.store import inbox

from . import peers
from .measuring import Contestants, Goal, Row, Size
from .server import Server, opened, running_assistant, started

SENDERS = 8
_LEFT = "SELECT count(*) FROM assistant.messages WHERE state IN ('waiting', 'working')"
_TALK = "CREATE TABLE talk (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, content text)"
_SAY = "WITH said AS (INSERT INTO talk (content) VALUES (%s)) SELECT pg_notify(%s, '')"


@asynccontextmanager
async def throughput(
    server: Server, size: Size, *, conversations: bool
) -> AsyncIterator[Contestants]:
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        contestants = {"inbox": await enter(_our_inbox(server, size.messages, conversations))}
        for name in filter(find_spec, peers.WORKERS):
            contestants[name] = await enter(_queue(server, name, size.messages))
        yield contestants


@asynccontextmanager
async def _our_inbox(
    server: Server, count: int, conversations: bool
) -> AsyncIterator[Callable[[], Awaitable[float]]]:
    dsn = await server.migrated()
    async with opened(dsn) as database, running_assistant(server, dsn, "--heartbeat", "off"):

        async def send(task: int, number: int) -> None:
            conversation = f"talk-{task}-{number}" if conversations else "main"
            await inbox.put_message(database, "hello", conversation=conversation)

        yield partial(_done_a_second, send, dsn, _LEFT, count)


@asynccontextmanager
async def _queue(
    server: Server, name: str, count: int
) -> AsyncIterator[Callable[[], Awaitable[float]]]:
    dsn = server.create_database(name)
    async with (
        peers.SENDERS[name](dsn) as send,
        started(sys.executable, "-m", peers.__name__, name, dsn),
    ):
        # The worker is up once it has done something.
        await _done_a_second(send, dsn, peers.LEFT[name], SENDERS)
        yield partial(_done_a_second, send, dsn, peers.LEFT[name], count)


async def _done_a_second(send: peers.Send, dsn: str, left: str, count: int) -> float:
    """Send so many, by several at once, and wait until none is left."""

    async def send_share(task: int) -> None:
        for number in range(count // SENDERS or 1):
            await send(task, number)

    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        start = time.perf_counter()
        await asyncio.gather(*(send_share(task) for task in range(SENDERS)))
        while True:
            row = await (await connection.execute(left.encode())).fetchone()
            if row == (0,):
                break
            await asyncio.sleep(0.005)
        return (count // SENDERS or 1) * SENDERS / (time.perf_counter() - start)


@asynccontextmanager
async def reply(server: Server, size: Size) -> AsyncIterator[Contestants]:
    dsn = await server.migrated()
    plain = server.create_database("plain", _TALK)
    async with (
        opened(dsn) as database,
        running_assistant(server, dsn, "--heartbeat", "off"),
        started(sys.executable, "-m", __name__, plain) as answering,
        await psycopg.AsyncConnection.connect(plain, autocommit=True) as connection,
        await psycopg.AsyncConnection.connect(plain, autocommit=True) as listener,
    ):
        await listener.execute("LISTEN answers")
        assert answering.stdout is not None
        await answering.stdout.readline()

        async def ask() -> None:
            message = await inbox.put_message(database, "hello", conversation="main")
            await inbox.wait_for_reply(database, message)

        async def ask_plainly() -> None:
            await connection.execute(_SAY, ("hello", "questions"), prepare=True)
            async for _ in listener.notifies(stop_after=1):
                pass

        yield {
            "send to reply": partial(_median, ask, size.events),
            "two commits, two NOTIFY": partial(_median, ask_plainly, size.events),
        }


def answer(dsn: str) -> None:
    """Keep an answer to each notification, and notify in turn."""
    with (
        psycopg.connect(dsn, autocommit=True) as connection,
        psycopg.connect(dsn, autocommit=True) as listener,
    ):
        listener.execute("LISTEN questions")
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        for _ in listener.notifies():
            connection.execute(_SAY, ("an answer", "answers"), prepare=True)


async def _median(operation: Callable[[], Awaitable[None]], count: int) -> float:
    latencies = []
    for _ in range(count):
        start = time.perf_counter()
        await operation()
        latencies.append(time.perf_counter() - start)
    return sorted(latencies)[count // 2] * 1000


ROWS = {
    "inbox": Row(
        "inbox: sent to answered, one conversation",
        "/s",
        partial(throughput, conversations=False),
        Goal(1, at_least=True),
        baselines=2,
    ),
    "inbox-conversations": Row(
        "inbox: sent to answered, a conversation each",
        "/s",
        partial(throughput, conversations=True),
        Goal(1, at_least=True),
        baselines=2,
    ),
    "reply": Row("send to reply, p50", "ms", reply, Goal(3)),
}

if __name__ == "__main__":
    answer(sys.argv[1])
