"""What the heartbeat looks at, and what it delivers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from ..crash_points import reach
from ..errors import AgentFailedError
from ..messages import HEARTBEAT, Outcome, Trigger, Turn
from . import firing, inbox, turns
from .database import Connection, Database
from .leases import guard
from .queries import load_queries

_SQL = load_queries(__file__)


@dataclass(frozen=True)
class SinceLastTick:
    """What has happened since the last tick that considered it; false where nothing has.

    Attributes:
        messages: how many messages came from the user.
        failures: what the agents said that failed, such as `backup: exit 1 after 3s`.
    """

    messages: int
    failures: Sequence[str]

    def __bool__(self) -> bool:
        return bool(self.messages or self.failures)


async def read_since_last_tick(database: Database) -> SinceLastTick:
    """What has happened since the last tick that considered it."""
    async with database.connection() as connection:
        row = await (await connection.execute(_SQL["since_last_tick"])).fetchone()
    assert row is not None
    return SinceLastTick(messages=row[0], failures=row[1])


async def is_busy(database: Database) -> bool:
    """Whether a message is being answered, by whichever process holds that agent."""
    async with database.connection() as connection:
        row = await (await connection.execute(_SQL["is_busy"])).fetchone()
    return bool(row and row[0])


async def begin_delivery(database: Database, token: int) -> Turn:
    """Begin a turn that delivers what is due; no model takes part."""
    async with database.transaction() as connection:
        await guard(connection, HEARTBEAT, token)
        turn = await _begin_delivery(connection, token)
        reach("delivery.before")
    reach("delivery.after")
    return turn


async def deliver(
    database: Database,
    token: int,
    turn: Turn,
    now: datetime,
    on_time_from: datetime | None = None,
) -> Outcome:
    """Fire the reminders and schedules that are due, each in its conversation; end the turn.

    Doing it again after a lost connection fires nothing twice.

    Args:
        on_time_from: what was due before this was missed; None: a minute before `now`.

    Raises:
        AgentFailedError: some of them failed, and are tried again later; the turn has ended so.
    """
    async with database.transaction() as connection:
        await guard(connection, HEARTBEAT, token)
        outcome, error = await _deliver(connection, turn, now, on_time_from or now - firing.GRACE)
        reach("firing.before")
    reach("firing.after")
    if error is not None:
        raise AgentFailedError(error)
    return outcome


async def deliver_at_once(
    database: Database, token: int, now: datetime, on_time_from: datetime
) -> None:
    """Begin a delivery and end it, in one transaction: it cannot be left open."""
    async with database.transaction() as connection:
        await guard(connection, HEARTBEAT, token)
        turn = await _begin_delivery(connection, token)
        await _deliver(connection, turn, now, on_time_from)


async def _begin_delivery(connection: Connection, token: int) -> Turn:
    trigger: Trigger = "reminder" if await firing.reminds_next(connection) else "schedule"
    return await turns.begin(connection, HEARTBEAT, trigger, None, token, "none")


async def _deliver(
    connection: Connection, turn: Turn, now: datetime, on_time_from: datetime
) -> tuple[Outcome, str | None]:
    outcome, error = await firing.fire_due(connection, turn, now, on_time_from)
    await turns.end(connection, turn, outcome, error)
    await inbox.announce(connection)
    return outcome, error
