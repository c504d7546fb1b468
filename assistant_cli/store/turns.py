"""Turns: every execution of an agent, what triggered it and how it ended."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from ..errors import LeaseLostError
from ..messages import Outcome, Trigger, Turn, Usage
from .database import Connection, Database
from .leases import guard
from .queries import load_queries

_SQL = load_queries(__file__)


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
        LeaseLostError: another process closed the turn as interrupted.
    """
    parameters = {"turn": turn.id, "outcome": outcome, "error": error}
    if (await connection.execute(_SQL["end"], parameters)).rowcount:
        return True
    row = await (await connection.execute(_SQL["outcome"], parameters)).fetchone()
    if row is None or (row[0] == "interrupted" and outcome != "interrupted"):
        raise LeaseLostError(f"turn {turn.id} was closed by another process")
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
    """
    text = json.dumps(_keepable(content), allow_nan=False)
    step = {"turn": turn.id, "kind": kind, "content": text}
    async with database.transaction() as connection:
        await guard(connection, turn.agent, token)
        await connection.execute(_SQL["add_step"], step)
        if usage is not None:
            await connection.execute(_SQL["add_usage"], {"turn": turn.id, **asdict(usage)})


async def show_partial_reply(database: Database, turn: Turn, text: str) -> None:
    """Let those who wait for the reply of a turn see what has come of it so far."""
    async with database.connection() as connection:
        parameters = {"turn": turn.id, "text": _keepable(text)}
        await connection.execute(_SQL["put_partial"], parameters)


def _keepable(value: Any) -> Any:
    """The same JSON value without what the database cannot keep: NUL, half surrogate pairs."""
    match value:
        case str():
            pairs = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            return pairs.replace("\x00", "\ufffd")
        case dict():
            return {_keepable(name): _keepable(child) for name, child in value.items()}
        case list():
            return [_keepable(child) for child in value]
        case _:
            return value


async def interrupt_open(connection: Connection, agent: str) -> list[int]:
    """Close the turns of an agent that nobody executes any more; returns their ids."""
    cursor = await connection.execute(_SQL["interrupt_open"], {"agent": agent})
    return [row[0] for row in await cursor.fetchall()]
