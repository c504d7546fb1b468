"""The durable inbox: messages are kept before they are acknowledged."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

from psycopg.rows import class_row

from ..crash_points import reach
from ..errors import (
    AgentFailedError,
    ConflictError,
    DatabaseUnreachableError,
    NotFoundError,
    PendingError,
    summary_of,
)
from ..messages import CONVERSATION, Message, Turn, check_content, check_name
from . import turns
from .database import Connection, Database
from .follow import Hints, follow
from .queries import load_queries

_SQL = load_queries(__file__)
CHANNEL = "assistant_messages"
SENT = "sent"
"""The hint that a message may be begun, and nothing else has changed."""
ANSWERED = "answered"
"""The hint that messages were answered. That others may be begun now is hinted separately."""


@dataclass(frozen=True)
class Progress:
    """How far a message has come; `partial` while a reply comes, `reply` once it is there."""

    state: str
    attempts: int
    error: str | None
    reply: str | None
    partial: str | None

    @property
    def last_failure(self) -> str:
        """What follows a sentence that it is not answered; nothing where no attempt failed."""
        return f"; its last attempt failed: {summary_of(self.error)}" if self.error else ""


async def put_message(
    database: Database,
    content: str,
    *,
    conversation: str,
    source: str = "cli",
    external_id: str | None = None,
) -> UUID:
    """Keep a message for the conversation agent; it is committed when this returns.

    Args:
        external_id: the sender's own name for it; sent again under the same name, it is kept
            once and the id of the first is returned.

    Raises:
        BadDataError: the message is empty, too large, or holds NUL or half a surrogate pair.
        ConflictError: another text was sent under the same name.
        QueueFullError: as many messages of the conversation wait as may.
    """
    check_content(content)
    check_name(conversation, "conversation")
    if external_id is not None:
        check_name(external_id, "message id")
    parameters = {
        "id": uuid4(),
        "content": content,
        "conversation": conversation,
        "source": source,
        "external_id": external_id,
    }
    try:
        first = await _put(database, parameters)
    except DatabaseUnreachableError:
        # Whether it was kept is not known; under the same id it is not kept twice.
        first = await _put(database, parameters)
    if first is None or (first[1], first[2]) != (conversation, content):
        raise ConflictError(f"another message was sent under the id {external_id!r}")
    return UUID(str(first[0]))


async def _put(database: Database, parameters: dict[str, Any]) -> tuple[Any, ...] | None:
    """Put a message, or find the one that has its id: its id, conversation and content."""
    async with database.connection() as connection:
        reach("send.before")
        put = await (await connection.execute(_SQL["put"], parameters)).fetchone()
        reach("send.after")
        assert put is not None
        if put[0] is not None:
            return put[0], parameters["conversation"], parameters["content"]
        return await (await connection.execute(_SQL["find_duplicate"], parameters)).fetchone()


async def wait_for_reply(
    database: Database, message: UUID, watch: Callable[[str], None] = lambda _: None
) -> str:
    """The reply to a message, once it is there.

    Args:
        watch: told what has come of the reply so far, each time that is more.

    Raises:
        AgentFailedError: the message could not be answered in its last attempt.
        NotFoundError: there is no such message, or it is none to be answered.
    """

    async def read(connection: Connection, hints: Hints) -> str | None:
        if hints == {SENT}:
            return None
        progress = await read_progress(connection, message)
        reply = _reply_in(progress)
        if reply is None and progress.partial:
            watch(progress.partial)
        return reply

    async with aclosing(follow(database, CHANNEL, read)) as replies:
        return await anext(replies)


async def read_reply(database: Database, message: UUID) -> str:
    """The reply to a message.

    Raises:
        PendingError: there is none yet.
        AgentFailedError: the message could not be answered in its last attempt.
        NotFoundError: there is no such message, or it is none to be answered.
    """
    async with database.connection() as connection:
        progress = await read_progress(connection, message)
    reply = _reply_in(progress)
    if reply is None:
        raise PendingError(f"message {message} is not answered yet{progress.last_failure}")
    return reply


def _reply_in(progress: Progress) -> str | None:
    match progress.state:
        case "answered":
            return progress.reply or ""
        case "failed":
            attempts = "attempt" if progress.attempts == 1 else "attempts"
            raise AgentFailedError(
                f"the message could not be answered in {progress.attempts} {attempts}: "
                f"{summary_of(progress.error)}"
            )
        case "said":
            raise NotFoundError("that was said by an agent; nothing answers it")
        case _:
            return None


async def read_progress(connection: Connection, message: UUID) -> Progress:
    """How far a message has come."""
    cursor = connection.cursor(row_factory=class_row(Progress))
    progress = await (await cursor.execute(_SQL["progress"], {"id": message})).fetchone()
    if progress is None:
        raise NotFoundError(f"there is no message {message} (any more)")
    return progress


async def withdraw(database: Database, message: UUID) -> None:
    """Take back a message that is not answered yet; a turn that answers it is cancelled.

    Others that the turn answers wait again.
    """
    async with database.connection() as connection:
        await connection.execute(_SQL["withdraw"], {"id": message, "error": turns.CANCELLED})


async def say(
    connection: Connection,
    turn: Turn,
    text: str,
    *,
    source: str = CONVERSATION,
    conversation: str | None = None,
) -> UUID:
    """Keep what an agent says, as part of the caller's transaction."""
    message_id = uuid4()
    parameters = {
        "id": message_id,
        "conversation": conversation or turn.conversation,
        "content": text,
        "source": source,
        "turn": turn.id,
    }
    await connection.execute(_SQL["say"], parameters)
    return message_id


async def announce(connection: Connection) -> None:
    """Hint to those who wait that messages changed."""
    await connection.execute(_SQL["announce"])


async def take_unreported(connection: Connection, patience: timedelta) -> list[Message]:
    """Messages not reported yet that failed or wait longer than `patience`, oldest first.

    Without those that were cancelled: whoever did so knows. What is returned counts as reported.
    """
    cursor = connection.cursor(row_factory=class_row(Message))
    await cursor.execute(_SQL["unanswered"], {"patience": patience, "cancelled": turns.CANCELLED})
    return await cursor.fetchall()


async def read_history(database: Database, conversation: str, limit: int) -> list[Message]:
    """The last messages of a conversation, oldest first."""
    async with database.connection() as connection:
        cursor = connection.cursor(row_factory=class_row(Message))
        parameters = {"conversation": conversation, "limit": limit}
        rows = await (await cursor.execute(_SQL["history"], parameters)).fetchall()
    return rows[::-1]
