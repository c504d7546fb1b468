"""What operations cost as the work grows: the ratio is that of much work to little."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from functools import partial
from uuid import uuid4

from assistant_cli.agents.context import history
from assistant_cli.store.answering import Worker
from assistant_cli.store.board import StatusBoard
from assistant_cli.store.database import Database
from assistant_cli.store.history import read_last
from assistant_cli.store.leases import Lease
from assistant_cli.store.status import get_snapshot

from .board import entry
from .keys import fill_keys
from .measuring import Contestants, Goal, Row, Size
from .server import Server, median_latency, opened

Operation = Callable[[Database, int], Awaitable[object]]
"""What is measured; it is given the database and its turn."""
Fill = Callable[[int], Sequence[str]]

FLAT = Goal(1.3)
_WRITTEN = "SELECT pg_current_wal_insert_lsn() - '0/0'"


def _keys(count: int) -> list[str]:
    return [fill_keys(count)]


def _agents(count: int) -> list[str]:
    return [
        "INSERT INTO kv (key, value) SELECT 'status_board', "
        "jsonb_object_agg(format('agent-%s', n), "
        '\'{"status": "running", "detail": "step 1"}\'::jsonb) '
        f"FROM generate_series(1, {count}) n"
    ]


def _messages(count: int) -> list[str]:
    """Messages with their replies and turns, the last hundred in the conversation `main`."""
    conversation = f"CASE WHEN n > {count // 2} - 50 THEN 'main' ELSE 'talk-' || n % 100 END"
    return [
        "INSERT INTO assistant.turns "
        "(agent, trigger, conversation, token, model, outcome, ended_at) "
        f"SELECT 'conversation', 'message', {conversation}, 1, 'offline', 'done', now() "
        f"FROM generate_series(1, {count} / 2) n",
        "INSERT INTO assistant.messages (id, conversation, role, content, source, state, turn_id) "
        f"SELECT gen_random_uuid(), {conversation}, role, 'about so much text', 'cli', "
        "CASE role WHEN 'user' THEN 'answered' ELSE 'said' END, n "
        f"FROM generate_series(1, {count} / 2) n, unnest(ARRAY['user', 'assistant']) role",
        "INSERT INTO assistant.leases (agent, token, host, pid, process, expires_at) "
        "VALUES ('conversation', 1, '', 0, '', 'infinity')",
    ]


def _events(count: int) -> list[str]:
    """A timeline on which one agent has said nothing since the first event."""
    said = '\'{"status": "running", "detail": "step 1"}\'::jsonb'
    return [
        "INSERT INTO kv (key, value) VALUES ('status_board', "
        f"jsonb_build_object('silent', {said}, 'agent-1', {said}))",
        "INSERT INTO assistant.board_events (agent, status, detail, since) "
        f"SELECT 'agent-1', 'running', 'step ' || n, NULL FROM generate_series(1, {count}) n",
    ]


@asynccontextmanager
async def filled(
    server: Server,
    size: Size,
    *,
    what: str,
    fill: Fill,
    operation: Operation,
) -> AsyncIterator[Contestants]:
    """The median latency of an operation on databases that hold little, more and much."""
    counts = size.agents if what == "agents" else size.growth
    async with AsyncExitStack() as stack:
        contestants = {}
        for count in _most_first(counts):
            dsn = await server.filled(f"{what}-{count}", *fill(count))
            database = await stack.enter_async_context(opened(dsn))
            measured = partial(median_latency, partial(operation, database), size.seconds / 3)
            contestants[f"{count:,} {what}"] = measured
        yield contestants


def _most_first(counts: Sequence[int]) -> list[int]:
    """The most, the fewest, and those in between: the ratio is that of the first two."""
    return [counts[-1], counts[0], *counts[1:-1]]


async def get(database: Database, _: int) -> object:
    return await database.kv.get("group-0/key-7")


async def list_prefix(database: Database, _: int) -> object:
    return await database.kv.list_keys("group-0/")


async def first_of_watch(database: Database, _: int) -> object:
    async with aclosing(database.kv.watch(prefix="group-0/")) as changes:
        return await anext(changes)


async def update(database: Database, number: int) -> None:
    await StatusBoard(database).update("agent-1", entry(number))


async def context(database: Database, _: int) -> object:
    return await history(database, "main", [])


async def last_messages(database: Database, _: int) -> object:
    return await read_last(database, None, 20)


async def snapshot(database: Database, _: int) -> object:
    return await get_snapshot(database)


async def next_message(database: Database, _: int) -> object:
    worker = Worker(StatusBoard(database, Lease(("conversation",), 1)), "conversation")
    return await worker.claim("offline")


@asynccontextmanager
async def written_ahead(server: Server, size: Size) -> AsyncIterator[Contestants]:
    async with AsyncExitStack() as stack:
        contestants = {}
        for count in _most_first(size.agents):
            dsn = await server.filled(f"agents-{count}", *_agents(count))
            database = await stack.enter_async_context(opened(dsn))
            contestants[f"{count:,} agents"] = partial(bytes_an_update, database, size.events)
        yield contestants


async def bytes_an_update(database: Database, updates: int) -> float:
    """Bytes of write-ahead log that an update of the board costs, past its first few."""
    board = StatusBoard(database)
    # The first change of a page after a checkpoint writes all of it.
    for number in range(10):
        await board.update("agent-1", entry(-number))
    before = await _written(database)
    for number in range(updates):
        await board.update("agent-1", entry(number))
    return (await _written(database) - before) / updates


async def _written(database: Database) -> float:
    async with database.connection() as connection:
        row = await (await connection.execute(_WRITTEN.encode())).fetchone()
    assert row is not None
    return float(row[0])


@asynccontextmanager
async def watchers(server: Server, size: Size) -> AsyncIterator[Contestants]:
    async with AsyncExitStack() as stack:
        contestants = {}
        for count in _most_first(size.watchers):
            dsn = await server.migrated(f"watchers-{count}")
            database = await stack.enter_async_context(opened(dsn))
            delivered = await stack.enter_async_context(_watched_by(database, count))
            contestants[f"{count} watchers"] = partial(median_latency, delivered, size.seconds / 3)
        yield contestants


@asynccontextmanager
async def _watched_by(
    database: Database, count: int
) -> AsyncIterator[Callable[[int], Awaitable[None]]]:
    """Write a key, and return once each of so many watchers has its value."""
    async with AsyncExitStack() as stack:
        await database.kv.set("watched", 0)
        watching = []
        for _ in range(count):
            changes = await stack.enter_async_context(aclosing(database.kv.watch("watched")))
            await anext(changes)
            watching.append(changes)

        async def write(_: int) -> None:
            await database.kv.set("watched", uuid4().int)
            await asyncio.gather(*(anext(changes) for changes in watching))

        yield write


def _row(title: str, what: str, fill: Fill, operation: Operation, goal: Goal | None = FLAT) -> Row:
    return Row(title, "ms", partial(filled, what=what, fill=fill, operation=operation), goal)


# What is one object, or goes to each of many, has to grow; the rest has not.
ROWS = {
    "growth-get": _row("`kv get` among keys", "keys", _keys, get),
    "growth-ls": _row("`kv ls` of a prefix of 100 keys", "keys", _keys, list_prefix),
    "growth-watch": _row("`kv watch` of that prefix, to the first", "keys", _keys, first_of_watch),
    "growth-update": _row("board update among agents", "agents", _agents, update, None),
    "growth-board": _row("`status` of a board of agents", "agents", _agents, snapshot, None),
    "growth-wal": Row("write-ahead log of a board update", "bytes", written_ahead),
    "growth-context": _row("a turn's context of messages", "messages", _messages, context),
    "growth-history": _row("`history` of messages", "messages", _messages, last_messages),
    "growth-status": _row("`status` with messages", "messages", _messages, snapshot),
    "growth-timeline": _row("`status` with a silent agent", "events", _events, snapshot),
    "growth-inbox": _row("a look into the inbox", "messages", _messages, next_message),
    "growth-watchers": Row("written to delivered to all watchers", "ms", watchers),
}
