"""What was said: the last messages, and each new one as it is committed."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass

from psycopg.rows import class_row

from ..messages import Message
from .database import Connection, Database
from .follow import Hints, follow
from .inbox import CHANNEL
from .queries import load_queries

_SQL = load_queries(__file__)
_WINDOW = 1000


@dataclass(frozen=True)
class PlacedMessage(Message):
    """A message and its place in the order in which all of them were put."""

    position: int = 0


async def read_last(
    database: Database, conversation: str | None, limit: int
) -> list[PlacedMessage]:
    """The last messages, oldest first; `conversation` None means of all conversations."""
    async with database.connection() as connection:
        return await _read_last(connection, conversation, limit)


def follow_messages(
    database: Database, conversation: str | None, limit: int
) -> AsyncGenerator[list[PlacedMessage]]:
    """Yield the last messages, maybe none, and then the new ones as they are committed.

    Each message is yielded once, also one that is committed after others with a later place,
    as long as these are fewer than a thousand. Outlives lost connections.

    Raises:
        AssistantError: as `follow` does.
    """
    return follow(database, CHANNEL, _Reader(conversation, limit).read, standby=True)


class _Reader:
    """Remembers which of the latest messages it has seen.

    To read what is later than the last one seen would not do: a message takes its place before it
    is committed, and one that is committed late would be skipped.
    """

    def __init__(self, conversation: str | None, limit: int) -> None:
        self._conversation = conversation
        self._limit = limit
        self._started = False
        self._floor = 0
        self._seen: list[int] = []

    async def read(self, connection: Connection, _: Hints) -> list[PlacedMessage] | None:
        if self._started:
            return await self._read_unseen(connection) or None
        # In this order: what is committed in between is shown now, or else counts as unseen.
        parameters = {"conversation": self._conversation, "limit": _WINDOW}
        cursor = await connection.execute(_SQL["last_positions"], parameters)
        earlier = [row[0] for row in await cursor.fetchall()]
        messages = await _read_last(connection, self._conversation, self._limit)
        self._remember([*earlier, *(message.position for message in messages)])
        self._started = True
        return messages

    async def _read_unseen(self, connection: Connection) -> list[PlacedMessage]:
        parameters = {
            "conversation": self._conversation,
            "floor": self._floor,
            "seen": self._seen,
        }
        cursor = connection.cursor(row_factory=class_row(PlacedMessage))
        messages = await (await cursor.execute(_SQL["unseen"], parameters)).fetchall()
        self._remember(message.position for message in messages)
        return messages

    def _remember(self, positions: Iterable[int]) -> None:
        self._seen = sorted({*self._seen, *positions})[-_WINDOW:]
        if len(self._seen) == _WINDOW:
            self._floor = self._seen[0] - 1


async def _read_last(
    connection: Connection, conversation: str | None, limit: int
) -> list[PlacedMessage]:
    parameters = {"conversation": conversation, "limit": limit}
    cursor = connection.cursor(row_factory=class_row(PlacedMessage))
    rows = await (await cursor.execute(_SQL["last"], parameters)).fetchall()
    return rows[::-1]
