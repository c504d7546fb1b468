"""Firing what is due: a message, the record of the run and the next due time, all or nothing.

A run is one row a due time, so that no due time is fired twice, whoever fires. All of it is
part of a transaction that holds the lease of the agent that fires.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import psycopg
from psycopg.rows import class_row

from ..errors import AssistantError
from ..messages import HEARTBEAT, Outcome, Turn
from ..timing import Timing, elapse
from .database import Connection, Database
from .inbox import announce
from .queries import load_queries
from .refusals import translate
from .schedules import Schedule, lock_schedule

_SQL = load_queries(__file__)

GRACE = timedelta(minutes=1)
"""How late a due time may be seen and still count as on time."""

_FIRST_DELAY = timedelta(seconds=5)
_LONGEST_DELAY = timedelta(hours=1)
_MOST_DELAYS = 7


async def next_due(database: Database) -> datetime | None:
    """When the next reminder or schedule is due, or tried again; None where there is none."""
    async with database.connection() as connection:
        row = await (await connection.execute(_SQL["next_due"])).fetchone()
    return row[0] if row else None


async def reminds_next(connection: Connection) -> bool:
    """Whether what is due next is a reminder."""
    row = await (await connection.execute(_SQL["reminds_next"])).fetchone()
    return bool(row and row[0])


async def fire_due(
    connection: Connection, turn: Turn, now: datetime, on_time_from: datetime
) -> tuple[Outcome, str | None]:
    """Fire up to a hundred schedules that are due, as part of the caller's transaction.

    One that fails is tried again later and holds up no other.

    Args:
        on_time_from: what was due before this was missed.

    Returns:
        The outcome of the turn, and what failed in it.
    """
    cursor = connection.cursor(row_factory=class_row(Schedule))
    due = await (await cursor.execute(_SQL["take_due"], {"now": now})).fetchall()
    fired = 0
    failures = []
    for schedule in due:
        try:
            async with connection.transaction():
                fired += await _handle(connection, schedule, turn, now, on_time_from)
        except (psycopg.Error, AssistantError, ValueError) as problem:
            if connection.closed:
                raise
            reason = str(translate(problem) if isinstance(problem, psycopg.Error) else problem)
            failures.append(f"schedule {schedule.id}: {reason}")
            await _put_off(connection, schedule, now, reason)
    if failures:
        return "failed", "; ".join(failures)
    return ("done" if fired else "silent"), None


async def run_schedule(database: Database, schedule_id: int) -> UUID:
    """Fire a schedule now, once, at somebody's request; its times stay as they are.

    Returns:
        The id of the message.

    Raises:
        NotFoundError: there is no such schedule, or it was cancelled.
    """
    async with database.transaction() as connection:
        schedule = await lock_schedule(connection, schedule_id, allowed=("active", "done"))
        row = await (await connection.execute(_SQL["now"])).fetchone()
        assert row is not None
        message = await _fire(connection, schedule, row[0], turn=None)
        assert message is not None
        await announce(connection)
    return message


async def _handle(
    connection: Connection, schedule: Schedule, turn: Turn, now: datetime, on_time_from: datetime
) -> bool:
    """Fire or skip what has come due since a schedule was last seen to; whether it fired."""
    timing = Timing(schedule.kind, schedule.spec, schedule.zone, schedule.due_at)
    elapsed = elapse(timing, now)
    # What was tried in time and failed was not missed.
    on_time = elapsed.last >= on_time_from or schedule.attempts > 0
    missed = elapsed.count - on_time
    message = None
    if schedule.catch_up == "once":
        message = await _fire(connection, schedule, schedule.due_at, turn, missed)
    else:
        if missed:
            parameters = {"id": schedule.id, "due_at": schedule.due_at, "missed": missed}
            await connection.execute(_SQL["skip"], parameters)
        if on_time:
            message = await _fire(connection, schedule, elapsed.last, turn)
    await connection.execute(
        _SQL["move"],
        {"id": schedule.id, "following": elapsed.following, "message": message},
    )
    return message is not None


async def _fire(
    connection: Connection,
    schedule: Schedule,
    due_at: datetime,
    turn: Turn | None,
    missed: int = 0,
) -> UUID | None:
    """Keep the message of a due time and the record of it; None where it was fired before.

    `turn`: the delivery that it is part of; None: somebody asked for it.
    """
    message = uuid4()
    asks = schedule.action == "ask"
    prefix = "Reminder: " if schedule.action == "remind" else ""
    parameters = {
        "id": schedule.id,
        "due_at": due_at,
        "missed": missed,
        "requested": turn is None,
        "message": message,
        "conversation": schedule.conversation,
        "role": "user" if asks else "assistant",
        "content": prefix + schedule.content,
        "source": "schedule" if asks else HEARTBEAT,
        "external_id": f"{schedule.id}/{due_at.astimezone(UTC).isoformat()}",
        "message_state": "waiting" if asks else "said",
        "turn": None if asks or turn is None else turn.id,
    }
    return message if (await connection.execute(_SQL["fire"], parameters)).rowcount else None


async def _put_off(connection: Connection, schedule: Schedule, now: datetime, reason: str) -> None:
    delay = min(_FIRST_DELAY * 3 ** min(schedule.attempts, _MOST_DELAYS), _LONGEST_DELAY)
    parameters = {
        "id": schedule.id,
        "due_at": schedule.due_at,
        "error": reason,
        "retry_at": now + delay,
    }
    await connection.execute(_SQL["put_off"], parameters)
