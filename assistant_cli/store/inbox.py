"""The durable inbox: messages are kept before they are acknowledged, and answered once.

Every write of an agent happens in a transaction that first makes sure, under a lock, that the
agent's lease is still this process's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any, assert_never
from uuid import UUID, uuid4

from psycopg.rows import class_row, dict_row

from ..crash_points import reach
from ..errors import AgentFailedError, ConflictError, DatabaseUnreachableError, NotFoundError
from ..messages import (
    MAIN_CONVERSATION,
    AddSchedule,
    CancelSchedule,
    Effect,
    Message,
    Outcome,
    Remember,
    Reply,
    Say,
    SetKey,
    Turn,
    check_content,
    check_name,
)
from . import turns
from .database import Connection, Database
from .follow import Hints, follow
from .kv import store_text
from .leases import guard
from .queries import load_queries
from .schedules import cancel_active, insert_schedule

_SQL = load_queries(__file__)
CHANNEL = "assistant_messages"
AGENT = "conversation"

MAX_ATTEMPTS = 3
RETRY_DELAY = timedelta(seconds=5)
"""The pause before the second attempt; the next pause is three times as long."""

_MESSAGE_FIELDS = [field.name for field in fields(Message)]


@dataclass(frozen=True)
class Progress:
    """How far a message has come; `partial` while a reply comes, `reply` once it is there."""

    state: str
    attempts: int
    error: str | None
    reply: str | None
    partial: str | None


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
        # It may have been kept; under the same id it is not kept again.
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
        if put is not None:
            return put[0], parameters["conversation"], parameters["content"]
        # It is known already, but perhaps not yet on the standbys; this waits for them.
        await connection.execute(_SQL["confirm"], parameters)
        return await (await connection.execute(_SQL["find_duplicate"], parameters)).fetchone()


async def wait_for_reply(
    database: Database, message: UUID, watch: Callable[[str], None] = lambda _: None
) -> str:
    """The reply to a message, once it is there.

    Args:
        watch: told what has come of the reply so far, each time that is more.

    Raises:
        AgentFailedError: the message could not be answered in its last attempt.
    """

    async def read(connection: Connection, _: Hints) -> Progress | None:
        progress = await read_progress(connection, message)
        if progress.state in {"answered", "failed"}:
            return progress
        if progress.partial:
            watch(progress.partial)
        return None

    async with aclosing(follow(database, CHANNEL, read)) as states:
        async for progress in states:
            if progress.state == "failed":
                raise AgentFailedError(
                    f"the message could not be answered in {progress.attempts} attempts: "
                    f"{progress.error}"
                )
            return progress.reply or ""
    raise AssertionError("following never ends by itself")


async def read_progress(connection: Connection, message: UUID) -> Progress:
    """How far a message has come."""
    cursor = connection.cursor(row_factory=class_row(Progress))
    progress = await (await cursor.execute(_SQL["progress"], {"id": message})).fetchone()
    if progress is None:
        raise NotFoundError(f"there is no message {message} (any more)")
    return progress


async def claim_turn(database: Database, token: int, model: str) -> Turn | None:
    """Claim all waiting messages of the conversation that waits longest, as one turn."""
    async with database.connection() as connection:
        cursor = connection.cursor(row_factory=dict_row)
        reach("claim.before")
        await cursor.execute(_SQL["claim"], {"token": token, "model": model})
        rows = sorted(await cursor.fetchall(), key=lambda row: int(row["position"]))
        if not rows:
            # The statement claims nothing either where the lease is lost.
            await guard(connection, AGENT, token)
            return None
    reach("claim.after")
    messages = [_message(row) for row in rows]
    return Turn(rows[0]["turn_id"], AGENT, "message", messages[0].conversation, messages)


async def answer_turn(database: Database, token: int, turn: Turn, replies: Sequence[Reply]) -> None:
    """Keep the replies and their effects, and mark the messages answered, all or nothing.

    Doing it again after a lost connection is safe: a turn that is done stays as it is.
    """
    changes_more = any(reply.effects for reply in replies)
    if not changes_more and await _answer_at_once(database, token, turn, replies):
        return
    async with database.transaction() as connection:
        await guard(connection, AGENT, token)
        if await turns.end(connection, turn, "done"):
            await _keep_replies(connection, turn, replies)
            await announce(connection)
        reach("effects.before")
    reach("effects.after")


async def _answer_at_once(
    database: Database, token: int, turn: Turn, replies: Sequence[Reply]
) -> bool:
    """Do that in one statement, since whoever sent waits for it; False: nothing was done."""
    kept = [
        {"id": str(uuid4()), "text": reply.text, "answers": [str(m.id) for m in reply.answers]}
        for reply in replies
    ]
    parameters = {
        "token": token,
        "turn": turn.id,
        "conversation": turn.conversation,
        "replies": json.dumps(kept),
    }
    async with database.connection() as connection:
        reach("reply.before")
        cursor = await connection.execute(_SQL["answer_at_once"], parameters)
        reach("reply.after")
        return await cursor.fetchone() is not None


async def fail_turn(
    database: Database,
    token: int,
    turn: Turn,
    outcome: Outcome,
    error: str,
    delay: timedelta,
    *,
    replies: Sequence[Reply] = (),
    attempted: bool = True,
) -> None:
    """End a turn that is not answered; its messages wait again, or are kept as failed.

    An interrupted turn was no attempt. One that was cancelled on request is not tried again,
    however it ended.

    Args:
        delay: the pause before the second attempt.
        replies: what was answered before it failed, and is kept.
        attempted: whether it counts as an attempt; if not, the pause does not grow either.
    """
    async with database.transaction() as connection:
        await guard(connection, AGENT, token)
        if not await turns.end(connection, turn, outcome, error):
            return
        await _keep_replies(connection, turn, replies)
        await connection.execute(_SQL["fail_cancelled"], {"error": turns.CANCELLED})
        parameters = {"turn": turn.id, "error": error, "limit": MAX_ATTEMPTS, "delay": delay}
        if outcome == "interrupted":
            parameters.update(error=None, delay=None)
            attempted = False
        query = "return_failed" if attempted else "return_unattempted"
        await connection.execute(_SQL[query], parameters)
        await announce(connection)
        reach("failure.before")
    reach("failure.after")


async def recover(database: Database, token: int) -> list[int]:
    """Close the turns that an earlier holder left open; their messages wait again."""
    async with database.transaction() as connection:
        await guard(connection, AGENT, token)
        closed = await turns.interrupt_open(connection, AGENT)
        await connection.execute(_SQL["fail_cancelled"], {"error": turns.CANCELLED})
        # Claimed by this very process, whose commit was not confirmed: nobody has executed it.
        await connection.execute(_SQL["return_unexecuted"], {"token": token})
        await connection.execute(_SQL["return_interrupted"], {"limit": MAX_ATTEMPTS})
        reach("recovery.before")
    reach("recovery.after")
    return closed


async def cancel_turn(database: Database, turn_id: int) -> bool:
    """Ask for a running turn to be ended, or end it where its process is gone.

    Its messages become failed and are not tried again.

    Returns:
        Whether a process may still run it.

    Raises:
        ConflictError: it has ended already.
        NotFoundError: there is no such turn.
    """
    async with database.transaction() as connection:
        runs = await turns.request_cancellation(connection, turn_id)
        if not runs:
            await connection.execute(_SQL["fail_cancelled"], {"error": turns.CANCELLED})
            await announce(connection)
    return runs


async def retry_turn(database: Database, turn_id: int) -> int:
    """Let the failed messages of a turn wait again, as if never tried; returns how many.

    Raises:
        ConflictError: none of its messages is failed.
        NotFoundError: there is no such turn.
    """
    async with database.transaction() as connection:
        waiting = (await connection.execute(_SQL["retry_failed"], {"turn": turn_id})).rowcount
        if not waiting:
            outcome = await turns.read_outcome(connection, turn_id)
            raise ConflictError(f"turn {turn_id} ({outcome}) has no failed messages")
        await announce(connection)
    return waiting


async def withdraw(database: Database, message: UUID) -> None:
    """Take back a message that is not answered yet; a turn that answers it is cancelled."""
    async with database.connection() as connection:
        await connection.execute(_SQL["withdraw"], {"id": message, "error": turns.CANCELLED})


async def seconds_to_next(connection: Connection) -> float | None:
    """Seconds until a waiting message may be tried; None where none waits."""
    row = await (await connection.execute(_SQL["seconds_to_next"])).fetchone()
    return None if row is None or row[0] is None else max(0.0, float(row[0]))


async def say(
    connection: Connection,
    turn: Turn,
    text: str,
    *,
    source: str = AGENT,
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

    Who cancelled one knows of it.
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


async def _keep_replies(connection: Connection, turn: Turn, replies: Sequence[Reply]) -> None:
    for reply in replies:
        reply_id = await say(connection, turn, reply.text)
        ids = [message.id for message in reply.answers]
        parameters = {"reply": reply_id, "ids": ids, "turn": turn.id}
        await connection.execute(_SQL["answer"], parameters)
        for number, effect in enumerate(reply.effects):
            await apply_effect(connection, turn, effect, number, reply.answers[0])


async def apply_effect(
    connection: Connection, turn: Turn, effect: Effect, number: int, message: Message | None = None
) -> None:
    """Do what a turn changes besides what it says, as part of the caller's transaction.

    Args:
        number: which of the turn's effects it is, where several bear the same time.
        message: what was answered, where anything was; it gives a note its time.
    """
    conversation = turn.conversation or MAIN_CONVERSATION
    match effect:
        case Remember(text):
            await store_text(connection, _note_key(turn, number, message), text)
        case AddSchedule(text, timing, action):
            await insert_schedule(connection, conversation, text, timing, action)
        case CancelSchedule(schedule_id):
            await cancel_active(connection, conversation, schedule_id)
        case SetKey(key, text):
            await store_text(connection, key, text)
        case Say(text):
            await say(connection, turn, text, source=turn.agent, conversation=MAIN_CONVERSATION)
        case _:
            assert_never(effect)


def _note_key(turn: Turn, number: int, message: Message | None) -> str:
    moment = (message.created_at if message else datetime.now(UTC)).astimezone(UTC)
    name = message.id.hex[:8] if message else f"turn-{turn.id}"
    return f"memory/notes/{moment:%Y%m%dT%H%M%S.%fZ}-{name}{f'-{number}' if number else ''}"


def _message(row: dict[str, Any]) -> Message:
    return Message(**{name: row[name] for name in _MESSAGE_FIELDS})
