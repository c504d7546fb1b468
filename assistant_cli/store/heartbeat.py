"""What the heartbeat keeps: its anchor, and what it said.

The anchor is the kv key `heartbeat_last_tick_at`, a time in ISO 8601 with zone, so that a
restart neither delays nor repeats a tick.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import psycopg

from ..crash_points import reach
from ..messages import MAIN_CONVERSATION, Effect, Message, Outcome, Trigger, Turn
from . import firing, inbox, reminders, turns
from .database import Connection, Database
from .kv import store_text
from .leases import guard
from .queries import load_queries

_SQL = load_queries(__file__)
AGENT = "heartbeat"
LAST_TICK_KEY = "heartbeat_last_tick_at"
NEXT_TICK_KEY = "heartbeat_next_tick_at"


async def recover(database: Database, token: int) -> list[int]:
    """Close the turns that an earlier holder left open."""
    async with database.transaction() as connection:
        await guard(connection, AGENT, token)
        return await turns.interrupt_open(connection, AGENT)


async def read_last_tick(database: Database) -> datetime | None:
    """When the last tick was; None where there was none, or the key holds no time."""
    async with database.connection() as connection:
        row = await (await connection.execute(_SQL["last_tick"])).fetchone()
    try:
        moment = datetime.fromisoformat(row[0]) if row and row[0] else None
        return moment.astimezone(UTC) if moment and moment.tzinfo else None
    except (ValueError, OverflowError):
        return None


async def announce_next_tick(database: Database, token: int, next_tick: datetime | None) -> None:
    """Keep when the next tick is due, for those who look; None means never."""
    async with database.transaction() as connection:
        await guard(connection, AGENT, token)
        await _store_next(connection, next_tick)


async def begin_tick(
    database: Database, token: int, model: str, now: datetime, next_tick: datetime
) -> Turn:
    """Begin the turn of a tick and move the anchor, in one transaction."""
    async with database.transaction() as connection:
        await guard(connection, AGENT, token)
        await store_text(connection, LAST_TICK_KEY, _iso(now))
        await _store_next(connection, next_tick)
        turn = await turns.begin(connection, AGENT, "timer", MAIN_CONVERSATION, token, model)
        reach("tick.before")
    reach("tick.after")
    return turn


async def begin_delivery(database: Database, token: int) -> Turn:
    """Begin a turn that delivers what is due; no model takes part."""
    async with database.transaction() as connection:
        await guard(connection, AGENT, token)
        trigger: Trigger = "reminder" if await firing.reminds_next(connection) else "schedule"
        turn = await turns.begin(connection, AGENT, trigger, None, token, "none")
        reach("delivery.before")
    reach("delivery.after")
    return turn


async def next_reminder(database: Database) -> datetime | None:
    """When the next reminder or schedule is due, or tried again."""
    async with database.connection() as connection:
        return await reminders.next_due(connection)


async def count_news(database: Database) -> int:
    """How many messages came in since the last tick that considered them."""
    async with database.connection() as connection:
        row = await (await connection.execute(_SQL["count_news"])).fetchone()
    return int(row[0]) if row else 0


async def is_busy(database: Database) -> bool:
    """Whether a message is being answered, by whichever process holds that agent."""
    async with database.connection() as connection:
        row = await (await connection.execute(_SQL["is_busy"])).fetchone()
    return bool(row and row[0])


async def deliver_reminders(
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
    """
    async with database.transaction() as connection:
        await guard(connection, AGENT, token)
        outcome, error = await firing.fire_due(
            connection, turn, now, on_time_from or now - firing.GRACE
        )
        await turns.end(connection, turn, outcome, error)
        await inbox.announce(connection)
        reach("firing.before")
    reach("firing.after")
    return outcome


async def finish_tick(
    database: Database,
    token: int,
    turn: Turn,
    thought: str | None,
    effects: Sequence[Effect],
    patience: timedelta,
) -> Outcome:
    """Say the thought, and each message that is unanswered for long, and end the turn.

    A message is reported once. Doing it again after a lost connection says nothing twice.

    Args:
        effects: what the turn changes besides.
        patience: how long a message may wait before it is reported.
    """
    async with database.transaction() as connection:
        await guard(connection, AGENT, token)
        unanswered = await inbox.take_unreported(connection, patience)
        outcome: Outcome = "done" if unanswered or thought is not None or effects else "silent"
        if not await turns.end(connection, turn, outcome):
            # Kept by an attempt before this one: nothing is marked as reported again.
            raise psycopg.Rollback
        for conversation, text in _reports(unanswered).items():
            await inbox.say(connection, turn, text, source=AGENT, conversation=conversation)
        if thought is not None:
            await inbox.say(connection, turn, thought, source=AGENT)
        for number, effect in enumerate(effects):
            await inbox.apply_effect(connection, turn, effect, number)
        await inbox.announce(connection)
        reach("thought.before")
    reach("thought.after")
    return outcome


async def end_without_result(
    database: Database, token: int, turn: Turn, outcome: Outcome, error: str | None
) -> None:
    """End a turn that was skipped, failed or interrupted."""
    async with database.transaction() as connection:
        await guard(connection, AGENT, token)
        await turns.end(connection, turn, outcome, error)


def _reports(messages: Sequence[Message]) -> dict[str, str]:
    lines: dict[str, list[str]] = {}
    for message in messages:
        moment = message.created_at.astimezone().strftime("%Y-%m-%d %H:%M")
        state = f"failed: {message.error}" if message.state == "failed" else "is unanswered"
        lines.setdefault(message.conversation, []).append(
            f"The message of {moment}, {_shorten(message.content)!r}, {state}"
        )
    return {conversation: "\n".join(texts) for conversation, texts in lines.items()}


def _shorten(text: str, limit: int = 60) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


async def _store_next(connection: Connection, moment: datetime | None) -> None:
    await store_text(connection, NEXT_TICK_KEY, _iso(moment) if moment else "off")


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
