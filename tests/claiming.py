"""Messages, and their turns as a worker claims, answers and fails them, without a host."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from assistant_cli.messages import Reply, Turn
from assistant_cli.store import answering, inbox
from assistant_cli.store.database import Database
from assistant_cli.store.leases import Lease

from .hosting import rows, worker_of

PAUSE = timedelta(seconds=5)


async def put(database: Database, text: str, conversation: str = "main", **given: Any) -> UUID:
    return await inbox.put_message(database, text, conversation=conversation, **given)


async def claim(database: Database, lease: Lease) -> Turn:
    [turn] = await claim_turns(database, lease)
    return turn


async def claim_turns(database: Database, lease: Lease, limit: int = 1) -> Sequence[Turn]:
    return await worker_of(database, lease).claim("offline", limit)


async def seconds_to_next(database: Database, lease: Lease) -> float | None:
    """What a worker knows that finds nothing to begin."""
    worker = worker_of(database, lease)
    assert await worker.claim("offline") == []
    return worker.seconds_to_next


async def answer(database: Database, lease: Lease, turn: Turn, replies: list[Reply]) -> None:
    await worker_of(database, lease).keep(turn, replies)


async def fail(database: Database, lease: Lease, turn: Turn, outcome: Any = "failed") -> None:
    await answering.fail_turn(database, lease.token, turn, outcome, "no luck", PAUSE)


def texts(turn: Turn | None) -> list[str]:
    return [message.content for message in turn.messages] if turn else []


async def states(database: Database) -> list[Any]:
    return await rows(
        database,
        "SELECT content, state, attempts FROM assistant.messages WHERE role = 'user' "
        "ORDER BY position",
    )
