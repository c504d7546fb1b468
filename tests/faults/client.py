"""A client of the campaign: `python -m tests.faults.client ROLE NAME SEED FOLDER DSN`.

It works until SIGTERM, and records what it was told. Times of leases are shorter than the
product's, so that a campaign sees many of them lapse.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from assistant_cli import Database, StatusBoard, connect, runtime, upkeep
from assistant_cli.errors import ConflictError, DatabaseUnreachableError
from assistant_cli.messages import CONVERSATION, Reply, Turn
from assistant_cli.store import answering, inbox, leases
from assistant_cli.store import database as connections
from assistant_cli.store.watch import Deleted

from .final import MARKER
from .history import Recorder

KEYS = 3
HELD = ("alpha", "beta")
SHARED = "gamma"
CONVERSATIONS = 3
LEASE = timedelta(seconds=2)
RENEWAL_VARIABLE = "FAULTS_RENEWAL_SECONDS"
EPOCH_VARIABLE = "FAULTS_EPOCH_SECONDS"

_REPLY_SECONDS = 5.0


@dataclass
class Client:
    """What each role works with; the random choices follow from the seed."""

    name: str
    dsn: str
    recorder: Recorder
    random: random.Random
    stopping: asyncio.Event
    numbers: Iterator[int] = field(default_factory=itertools.count)

    async def pause(self, seconds: float) -> None:
        """A pause of up to so many seconds, or until the client is to stop."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self.random.uniform(0, seconds)):
                await self.stopping.wait()


def shorten_leases() -> None:
    """Let leases of this process lapse sooner, and be noticed sooner."""
    leases.LEASE = LEASE
    leases.RENEWAL = timedelta(seconds=float(os.environ[RENEWAL_VARIABLE]))
    runtime._STANDBY_POLL_SECONDS = 0.3
    # A lease does not lapse sooner than a transaction that was left open by its holder ends.
    assert "'10s'" in connections._SESSION
    connections._SESSION = connections._SESSION.replace("'10s'", "'1300ms'")


async def use_keys(client: Client, database: Database) -> None:
    """Read and write a few keys, which are others in each epoch so that histories stay short.

    What is written is different each time, so that a value tells who wrote it.
    """
    seen: dict[str, int] = {}
    while not client.stopping.is_set():
        epoch = int(time.monotonic() / float(os.environ[EPOCH_VARIABLE]))
        key = f"k/{epoch}/{client.random.randrange(KEYS)}"
        value = client.random.randrange(1, 2**31) * 1000
        name = client.random.choices(
            ["get", "set", "replace", "create", "increment", "delete", "slow set"],
            [6, 3, 4, 1, 3, 1, 2],
        )[0]
        await _use_key(client, database, name, key, value, seen)
        await client.pause(0.06)


async def _use_key(
    client: Client, database: Database, name: str, key: str, value: int, seen: dict[str, int]
) -> None:
    kv, record = database.kv, client.recorder.call
    revision: int | None = None
    match name:
        case "get":
            found = await record("get", lambda: _get(database, key), key=key)
            revision = found[1] if found else None
        case "set":
            revision = await record("set", lambda: kv.set(key, value), key=key, value=value)
        case "slow set":
            seconds = client.random.uniform(0, 0.1)
            work = _slow_set(database, key, value, seconds)
            revision = await record("set", work, key=key, value=value)
        case "create":
            work = lambda: kv.set(key, value, create=True)  # noqa: E731
            revision = await record("create", work, key=key, value=value)
        case "replace":
            known = seen.get(key, 1)
            work = lambda: kv.set(key, value, if_revision=known)  # noqa: E731
            revision = await record("replace", work, key=key, value=value, if_revision=known)
        case "increment":
            await record("increment", lambda: kv.increment(key), key=key, by=1)
        case "delete":
            await record("delete", lambda: kv.delete(key), key=key)
    if revision is not None:
        seen[key] = revision


async def _get(database: Database, key: str) -> tuple[Any, int] | None:
    entry = await database.kv.get_entry(key)
    return None if entry is None else (entry.value, entry.revision)


def _slow_set(
    database: Database, key: str, value: int, seconds: float
) -> Callable[[], Awaitable[int]]:
    """Plain SQL of another program, whose revision is given some time before it commits."""

    async def work() -> int:
        async with database.transaction() as connection:
            cursor = await connection.execute(
                "INSERT INTO kv (key, value) VALUES (%s, to_jsonb(%s::bigint)) "
                "ON CONFLICT (key) DO UPDATE SET value = excluded.value RETURNING revision",
                (key, value),
            )
            row = await cursor.fetchone()
            assert row is not None
            await asyncio.sleep(seconds)
        return int(row[0])

    return work


async def watch_keys(client: Client, database: Database) -> None:
    """Watch all keys until the campaign's last one comes."""
    number = next(client.numbers)
    async with aclosing(database.kv.watch(prefix="k/")) as changes:
        async for change in changes:
            value = None if isinstance(change, Deleted) else change.value
            client.recorder.deliver(number, change.key, value, change.revision)
            if change.key == MARKER:
                return


async def hold_agents(client: Client, database: Database) -> None:
    """Take agents that another client wants as well, speak for them, and give them back."""
    while not client.stopping.is_set():
        token = await client.recorder.call(
            "acquire", lambda: _acquire(database, HELD), agents=list(HELD)
        )
        if token is not None:
            lease = leases.Lease(HELD, token)
            async with _kept(database, lease):
                await _speak(client, database, lease)
            await leases.release(database, lease)
        await client.pause(0.4)


async def _acquire(database: Database, agents: Sequence[str]) -> int:
    return (await leases.acquire(database, agents)).token


@asynccontextmanager
async def _kept(database: Database, lease: leases.Lease) -> AsyncIterator[None]:
    keeping = asyncio.create_task(upkeep.keep_lease(database, lease))
    try:
        yield
    finally:
        keeping.cancel()
        with suppress(asyncio.CancelledError, ConflictError):
            await keeping


async def _speak(client: Client, database: Database, lease: leases.Lease) -> None:
    board = StatusBoard(database, lease)
    for number in range(client.random.randrange(5, 60)):
        agents = client.random.choices(HELD, k=client.random.choice([1, 1, 1, 2, 3]))
        updates = [
            _update(client, board, agent, lease.token, f"{number}.{place}")
            for place, agent in enumerate(agents)
        ]
        results = await asyncio.gather(*updates, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception) and not isinstance(result, DatabaseUnreachableError):
                raise result
        if False in results or client.stopping.is_set():
            return
        await client.pause(0.1)


async def _update(client: Client, board: StatusBoard, agent: str, token: int, number: str) -> bool:
    """Whether an update was accepted."""
    detail = f"{token} {client.name} {number}"
    status = client.random.choice(["idle", "running", "failed"])

    async def work() -> bool:
        await board.update(agent, {"status": status, "detail": detail})
        return True

    done = await client.recorder.call("update", work, agent=agent, token=token, detail=detail)
    return done is True


async def report(client: Client, database: Database) -> None:
    """Speak, beside another client, for an agent that nobody holds; look at what others say."""
    board = StatusBoard(database)
    reader = StatusBoard(database)
    while not client.stopping.is_set():
        if client.random.random() < 0.7:
            await _update(client, board, SHARED, 0, str(next(client.numbers)))
        agent = client.random.choice([*HELD, SHARED])
        await client.recorder.call("read", lambda: _read(reader, agent), agent=agent)  # noqa: B023
        await client.pause(0.2)


async def _read(board: StatusBoard, agent: str) -> Any:
    return (await board.read()).get(agent, {}).get("detail")


async def send(client: Client, database: Database) -> None:
    """Send messages, and look at the replies to some."""
    while not client.stopping.is_set():
        await _send(client, database)
        await client.pause(0.4)


async def _send(client: Client, database: Database) -> None:
    conversation = f"c{client.random.randrange(CONVERSATIONS)}"
    content = f"{client.name} {next(client.numbers)}"

    async def put() -> UUID:
        return await inbox.put_message(
            database, content, conversation=conversation, external_id=content
        )

    message = await client.recorder.call("send", put, content=content, conversation=conversation)
    if message is not None and client.random.random() < 0.3:
        with suppress(TimeoutError):
            async with asyncio.timeout(_REPLY_SECONDS):
                await client.recorder.call(
                    "reply", lambda: inbox.wait_for_reply(database, message), message=str(message)
                )


async def answer(client: Client, database: Database) -> None:
    """Answer messages as `run` does, but without a look at the board or a renewal of the lease.

    So it goes on under a lease that lapsed or was taken over until it is refused.
    """
    while not client.stopping.is_set():
        token = await client.recorder.call(
            "acquire", lambda: _acquire(database, [CONVERSATION]), agents=[CONVERSATION]
        )
        if token is not None:
            await answering.recover(database, CONVERSATION, token)
            board = StatusBoard(database, leases.Lease((CONVERSATION,), token))
            worker = answering.Worker(board, CONVERSATION)
            while await _answer(client, worker, token):
                await client.pause(0.2)
        await client.pause(0.2)


async def _answer(client: Client, worker: answering.Worker, token: int) -> bool:
    """Whether the lease still counted."""

    async def claim() -> list[Turn]:
        return await worker.claim("none", 2)

    turns = await client.recorder.call("claim", claim, agent=CONVERSATION, token=token)
    for turn in turns or []:
        text = "\n".join(f"re: {message.content}" for message in turn.messages)
        await worker.keep(turn, [Reply(turn.messages, text)])
    return turns is not None and not client.stopping.is_set()


ROLES: dict[str, Callable[[Client, Database], Awaitable[None]]] = {
    "keys": use_keys,
    "watch": watch_keys,
    "hold": hold_agents,
    "report": report,
    "send": send,
    "answer": answer,
}


async def main(role: str, name: str, seed: str, folder: str, dsn: str) -> None:
    """Work in a role until SIGTERM, whatever becomes of the database."""
    shorten_leases()
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    recorder = Recorder(Path(folder) / f"{name}.jsonl")
    client = Client(name, dsn, recorder, random.Random(seed), stopping)
    while not stopping.is_set():
        with suppress(DatabaseUnreachableError):
            async with connect(dsn) as database:
                await _work(role, client, database)
        await asyncio.sleep(0.1)


async def _work(role: str, client: Client, database: Database) -> None:
    while True:
        with suppress(DatabaseUnreachableError, ConflictError):
            await ROLES[role](client, database)
            client.stopping.set()
            return
        await _until_answered(client, database)


async def _until_answered(client: Client, database: Database) -> None:
    """Leave a database that is away alone, so that few calls have an outcome nobody knows."""
    while not client.stopping.is_set():
        await client.pause(0.2)
        with suppress(DatabaseUnreachableError):
            await database.kv.get("k/anything")
            return


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
