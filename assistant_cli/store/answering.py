"""What the workers of the conversation agent do with the inbox: claim, answer, give back.

Several of them, on several hosts, share it; in a conversation, one turn runs at a time. Every
write happens in a transaction that first makes sure, under a lock, that the worker's lease is
still this process's. The functions that begin and answer turns are part of the schema, which makes
several statements one round trip.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Any, Literal
from uuid import uuid4

from psycopg.rows import dict_row

from ..crash_points import reach
from ..errors import ConflictError, DatabaseUnreachableError
from ..messages import Message, Outcome, Reply, Turn
from . import turns
from .batches import Batches, Write, still_wanted
from .board import IDLE, StatusBoard
from .database import Connection, Database
from .effects import apply_effect
from .inbox import announce, say
from .leases import guard
from .queries import load_queries

_SQL = load_queries(__file__)

MAX_ATTEMPTS = 3
MAX_INTERRUPTED_ATTEMPTS = 10
"""More than MAX_ATTEMPTS: that a process was killed is seldom the fault of the message it answered,
but one that kills its process each time must be given up in the end."""
RETRY_DELAY = timedelta(seconds=5)
"""The pause before the second attempt; the next pause is three times as long."""

Cancellation = Literal["asked", "closed", "given up"]
"""What came of it: a process may still run the turn, none does, or it had ended before."""

_MESSAGE_FIELDS = [field.name for field in fields(Message)]


@dataclass
class _Answer(Write[bool]):
    turn: Turn
    replies: Sequence[Reply]


class Worker:
    """Begins and answers the turns of a worker; the same commits put them on the board.

    `seconds_to_next`: in how many seconds, as of the last claim, a waiting message can be tried;
    None: none waits; infinite: all of them wait for turns that run in their conversations.
    """

    def __init__(self, board: StatusBoard, agent: str) -> None:
        """A worker that the lease of the board holds.

        Args:
            agent: its name.
        """
        assert board.lease is not None
        self.seconds_to_next: float | None = None
        self._board = board
        self._database = board.database
        self._agent = agent
        self._token = board.lease.token
        self._answers = Batches(self._keep_batch)

    async def claim(self, model: str, limit: int = 1) -> list[Turn]:
        """Begin a turn for each of the conversations that wait longest, with all that waits there.

        Args:
            limit: for how many conversations.

        Raises:
            LeaseLostError: another process holds the worker's name.
        """
        parameters = {**self._named(), "model": model, "limit": limit}
        async with self._board.shown_by(self._agent) as tell:
            async with self._database.connection() as connection:
                cursor = connection.cursor(row_factory=dict_row)
                reach("claim.before")
                rows = await (await cursor.execute(_SQL["begin"], parameters)).fetchall()
                if len(rows) > 1:
                    reach("claim.after")
                if not rows:
                    await guard(connection, self._agent, self._token)
            last: dict[str, Any] = rows.pop() if rows else {"entry": None, "seconds": 0.0}
            tell(last["entry"])
            self.seconds_to_next = last["seconds"]
        return self._turns(rows)

    def _turns(self, rows: list[dict[str, Any]]) -> list[Turn]:
        claimed: dict[int, list[Message]] = defaultdict(list)
        for row in sorted(rows, key=lambda row: int(row["position"])):
            claimed[row["turn_id"]].append(_message(row))
        return [
            Turn(turn_id, self._agent, "message", messages[0].conversation, messages)
            for turn_id, messages in claimed.items()
        ]

    async def keep(self, turn: Turn, replies: Sequence[Reply]) -> None:
        """Keep the replies and their effects, and mark the messages answered, all or nothing.

        Those that are kept at the same time share a commit. Doing it again after a lost
        connection is safe: a turn that is done stays as it is.

        Raises:
            LeaseLostError: another process holds the worker's name.
            TurnClosedError: the turn was closed while the lease had lapsed.
        """
        if not any(reply.effects for reply in replies):
            answer = _Answer(asyncio.get_running_loop().create_future(), turn, replies)
            await self._answers.write(answer)
            if answer.written.result():
                return
        async with self._database.transaction() as connection:
            await guard(connection, self._agent, self._token)
            if await turns.end(connection, turn, "done"):
                await _keep_replies(connection, turn, replies)
                await announce(connection)
            reach("effects.before")
        reach("effects.after")
        # After the transaction: within it, the board would be locked until this process commits.
        await self.show(IDLE)

    async def _keep_batch(self, batch: list[_Answer]) -> None:
        """Keep them in one statement; the result of each is whether it was kept."""
        async with self._board.shown_by(self._agent) as tell:
            async with self._database.connection() as connection:
                if not (batch := still_wanted(batch)):
                    return
                parameters = {**self._named(), "replies": json.dumps(_describe(batch))}
                reach("reply.before")
                cursor = await connection.execute(_SQL["keep"], parameters)
                reach("reply.after")
                row = await cursor.fetchone()
            assert row is not None
            tell(row[1])
        for answer in batch:
            answer.succeed(answer.turn.id in (row[0] or ()))

    async def show(self, at_rest: Mapping[str, Any]) -> None:
        """Put on the board what is true of the worker: `at_rest` where none of its turns runs."""
        parameters = {**self._named(), "at_rest": json.dumps(dict(at_rest))}
        async with self._board.shown_by(self._agent) as tell:
            async with self._database.connection() as connection:
                row = await (await connection.execute(_SQL["show"], parameters)).fetchone()
                if row is None:
                    await guard(connection, self._agent, self._token)
                    raise DatabaseUnreachableError("the lease had lapsed; trying again")
            tell(row[0])

    def _named(self) -> dict[str, Any]:
        return {"agent": self._agent, "token": self._token}


def _describe(answers: list[_Answer]) -> list[dict[str, Any]]:
    """Replies as the statement that keeps them takes them."""
    return [
        {
            "turn": answer.turn.id,
            "conversation": answer.turn.conversation,
            "id": str(uuid4()),
            "text": reply.text,
            "answers": [str(message.id) for message in reply.answers],
        }
        for answer in answers
        for reply in answer.replies
    ]


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
        await guard(connection, turn.agent, token)
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


async def recover(
    database: Database, agent: str, token: int, running: Collection[int] = ()
) -> list[int]:
    """Close the turns that nobody runs any more; their messages wait again.

    Args:
        agent: the name of the worker.
        running: the turns that this process runs for it.

    Returns:
        Those of them that bear the worker's name.
    """
    async with database.transaction() as connection:
        await guard(connection, agent, token, alone=True)
        closed = await turns.interrupt_open(connection, agent, running)
        # Claimed by this very process, whose commit was not confirmed: nobody has executed it.
        unexecuted = [turn_id for turn_id, holder in closed.items() if holder == token]
        await _return_orphaned(connection, token, unexecuted)
        reach("recovery.before")
    reach("recovery.after")
    return list(closed)


async def return_orphaned(connection: Connection, token: int) -> None:
    """Close the turns of workers whose lease has lapsed; their messages wait again.

    Args:
        token: that of this process, which may have to renew its own lease first.
    """
    async with connection.transaction():
        await _return_orphaned(connection, token)
        await announce(connection)
        reach("orphans.before")
    reach("orphans.after")


async def _return_orphaned(
    connection: Connection, token: int, unexecuted: Sequence[int] = ()
) -> None:
    await connection.execute(_SQL["close_orphans"], {"token": token})
    await connection.execute(_SQL["fail_cancelled"], {"error": turns.CANCELLED})
    await connection.execute(_SQL["return_unexecuted"], {"turns": list(unexecuted)})
    await connection.execute(_SQL["return_interrupted"], {"limit": MAX_INTERRUPTED_ATTEMPTS})


async def cancel_turn(database: Database, turn_id: int) -> Cancellation:
    """Ask for a running turn to be ended, or end it where its process is gone.

    Its messages become failed and are not tried again. Of a turn that has ended, the messages
    that are failed are given up: they count as failed no longer.

    Raises:
        ConflictError: it has ended already, and left no failed messages.
        NotFoundError: there is no such turn.
    """
    async with database.transaction() as connection:
        parameters = {"turn": turn_id, "error": turns.CANCELLED}
        if (await connection.execute(_SQL["give_up_failed"], parameters)).rowcount:
            return "given up"
        runs = await turns.request_cancellation(connection, turn_id)
        await connection.execute(_SQL["mark_cancelled"], parameters)
        if runs:
            return "asked"
        await connection.execute(_SQL["fail_cancelled"], {"error": turns.CANCELLED})
        await announce(connection)
    return "closed"


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


async def _keep_replies(connection: Connection, turn: Turn, replies: Sequence[Reply]) -> None:
    for reply in replies:
        reply_id = await say(connection, turn, reply.text)
        ids = [message.id for message in reply.answers]
        parameters = {"reply": reply_id, "ids": ids, "turn": turn.id}
        await connection.execute(_SQL["answer"], parameters)
        for number, effect in enumerate(reply.effects):
            await apply_effect(connection, turn, effect, number, reply.answers[0])


def _message(row: dict[str, Any]) -> Message:
    return Message(**{name: row[name] for name in _MESSAGE_FIELDS})
