"""Turns: every execution of an agent, what triggered it and how it ended."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from decimal import Decimal
from math import isfinite
from typing import Any

from psycopg.rows import class_row

from ..errors import (
    ConflictError,
    DatabaseUnreachableError,
    NotFoundError,
    TurnClosedError,
)
from ..messages import Message, Outcome, Trigger, Turn, Usage
from .database import Connection, Database
from .leases import guard, read_holders
from .queries import load_queries

_SQL = load_queries(__file__)
CHANNEL = "assistant_turns"
CANCELLED = "cancelled on request"
"""The error of a turn that was cancelled, and of its messages."""


@dataclass(frozen=True)
class TurnRecord:
    """A turn as it is kept.

    Attributes:
        outcome: an `Outcome`, or `running`.
        cancelled_at: when somebody first asked for it to be ended.
        seconds: how long it took, or has taken so far.
        requests: how often the model was asked.
        cost_usd: None where it is not known.
    """

    id: int
    agent: str
    trigger: str
    conversation: str | None
    outcome: str
    model: str
    started_at: datetime
    ended_at: datetime | None
    cancelled_at: datetime | None
    seconds: float
    requests: int
    input_tokens: int
    output_tokens: int
    cost_usd: Decimal | None
    error: str | None


@dataclass(frozen=True)
class Step:
    """What was sent or came back in a turn; `content` is JSON text, digit for digit."""

    position: int
    kind: str
    at: datetime
    content: str


@dataclass(frozen=True)
class TurnReport:
    """Everything that is kept of a turn, its messages and steps in their order."""

    turn: TurnRecord
    messages: Sequence[Message]
    steps: Sequence[Step]


async def begin(
    connection: Connection,
    agent: str,
    trigger: Trigger,
    conversation: str | None,
    token: int,
    model: str,
) -> Turn:
    """Record that a turn begins, as part of the caller's transaction."""
    parameters = {
        "agent": agent,
        "trigger": trigger,
        "conversation": conversation,
        "token": token,
        "model": model,
    }
    row = await (await connection.execute(_SQL["begin"], parameters)).fetchone()
    assert row is not None
    return Turn(row[0], agent, trigger, conversation)


async def end(
    connection: Connection, turn: Turn, outcome: Outcome, error: str | None = None
) -> bool:
    """Record how a turn ended; False where it has ended already, by an attempt before this.

    Raises:
        TurnClosedError: another process closed the turn as interrupted.
    """
    parameters = {"turn": turn.id, "outcome": outcome, "error": error}
    if (await connection.execute(_SQL["end"], parameters)).rowcount:
        return True
    row = await (await connection.execute(_SQL["outcome"], parameters)).fetchone()
    if row is None or (row[0] == "interrupted" and outcome != "interrupted"):
        raise _closed(turn)
    return False


async def add_step(
    database: Database,
    turn: Turn,
    token: int,
    kind: str,
    content: Any,
    usage: Usage | None = None,
) -> None:
    """Keep a step of a turn that this process executes, and what it used.

    Raises:
        LeaseLostError: another process holds the agent.
        TurnClosedError: another process closed the turn.
        DatabaseUnreachableError: the lease lapsed and has to be renewed first; try again.
    """
    step = {
        "turn": turn.id,
        "agent": turn.agent,
        "token": token,
        "kind": kind,
        "content": json.dumps(keepable(content), allow_nan=False),
        **asdict(usage or Usage(0, 0, 0, None)),
    }
    async with database.connection() as connection:
        # One statement: a model waits for it.
        if not (await connection.execute(_SQL["add_step"], step)).rowcount:
            await guard(connection, turn.agent, token)
            if await read_outcome(connection, turn.id) != "running":
                raise _closed(turn)
            raise DatabaseUnreachableError(f"the lease of {turn.agent} had lapsed; it is back")


async def show_partial_reply(database: Database, turn: Turn, text: str) -> None:
    """Let those who wait for the reply of a turn see what has come of it so far."""
    async with database.connection() as connection:
        parameters = {"turn": turn.id, "text": keepable(text)}
        await connection.execute(_SQL["put_partial"], parameters)


def keepable(value: Any) -> Any:
    """The same JSON value without what the database cannot keep: NUL, half pairs, NaN."""
    match value:
        case str():
            pairs = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            return pairs.replace("\x00", "\ufffd")
        case dict():
            return {keepable(name): keepable(child) for name, child in value.items()}
        case list():
            return [keepable(child) for child in value]
        case float() if not isfinite(value):
            return None
        case _:
            return value


async def interrupt_open(
    connection: Connection, agent: str, running: Collection[int] = ()
) -> dict[int, int]:
    """Close the turns of an agent that nobody executes any more.

    Args:
        running: those that this process does execute.

    Returns:
        The token under which each was begun, by its id.
    """
    parameters = {"agent": agent, "running": list(running)}
    cursor = await connection.execute(_SQL["interrupt_open"], parameters)
    return {row[0]: row[1] for row in await cursor.fetchall()}


async def list_turns(
    database: Database, *, agent: str | None, failed: bool, limit: int
) -> list[TurnRecord]:
    """The last turns, newest last.

    Args:
        agent: only those of this agent.
        failed: only those that failed, timed out or were interrupted.
    """
    parameters = {"agent": agent, "failed": failed, "limit": limit}
    async with database.connection() as connection:
        cursor = connection.cursor(row_factory=class_row(TurnRecord))
        rows = await (await cursor.execute(_SQL["list"], parameters)).fetchall()
    return rows[::-1]


async def read_report(database: Database, turn_id: int, *, pretty: bool) -> TurnReport:
    """Everything that is kept of a turn, as of one moment.

    Args:
        pretty: the contents of its steps are indented.

    Raises:
        NotFoundError: there is no such turn.
    """
    parameters = {"turn": turn_id, "pretty": pretty}
    async with database.transaction() as connection:
        await connection.execute(_SQL["one_moment"])
        records = connection.cursor(row_factory=class_row(TurnRecord))
        turn = await (await records.execute(_SQL["find"], parameters)).fetchone()
        if turn is None:
            raise _unknown(turn_id)
        messages = connection.cursor(row_factory=class_row(Message))
        steps = connection.cursor(row_factory=class_row(Step))
        return TurnReport(
            turn,
            await (await messages.execute(_SQL["messages"], parameters)).fetchall(),
            await (await steps.execute(_SQL["steps"], parameters)).fetchall(),
        )


async def get_spend(database: Database, since: datetime, agent: str | None = None) -> Usage:
    """What the turns that began since a time have used, of one agent or of all."""
    async with database.connection() as connection:
        return await read_spend(connection, since, agent)


async def read_spend(connection: Connection, since: datetime, agent: str | None = None) -> Usage:
    """What the turns that began since a time have used, of one agent or of all."""
    cursor = connection.cursor(row_factory=class_row(Usage))
    spend = await (await cursor.execute(_SQL["spend"], {"since": since, "agent": agent})).fetchone()
    assert spend is not None
    return spend


async def request_cancellation(connection: Connection, turn_id: int) -> bool:
    """Ask for a running turn to be ended, or end it where its process is gone.

    Returns:
        Whether a process may still run it.

    Raises:
        ConflictError: it has ended already.
        NotFoundError: there is no such turn.
    """
    cursor = await connection.execute(_SQL["request_cancellation"], {"turn": turn_id})
    row = await cursor.fetchone()
    if row is None:
        outcome = await read_outcome(connection, turn_id)
        raise ConflictError(f"turn {turn_id} has ended already: {outcome}")
    agent, token = row[0], row[1]
    holders = await read_holders(connection, [agent])
    if any(holder.token == token and not holder.gone for holder in holders):
        return True
    parameters = {"turn": turn_id, "outcome": "interrupted", "error": CANCELLED}
    await connection.execute(_SQL["end"], parameters)
    return False


async def read_cancelled(connection: Connection) -> list[int]:
    """The running turns that somebody asked to be ended."""
    cursor = await connection.execute(_SQL["cancelled"])
    return [row[0] for row in await cursor.fetchall()]


async def read_outcome(connection: Connection, turn_id: int) -> str:
    """How a turn ended, or `running`.

    Raises:
        NotFoundError: there is no such turn.
    """
    row = await (await connection.execute(_SQL["outcome"], {"turn": turn_id})).fetchone()
    if row is None:
        raise _unknown(turn_id)
    return str(row[0])


def _closed(turn: Turn) -> TurnClosedError:
    return TurnClosedError(f"turn {turn.id} was closed by another process")


def _unknown(turn_id: int) -> NotFoundError:
    return NotFoundError(f"there is no turn {turn_id}; `assistant turns ls` lists them")
