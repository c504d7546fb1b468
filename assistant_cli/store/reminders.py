"""Reminders: texts to be said in a conversation at a time, the simplest of schedules."""

from __future__ import annotations

from datetime import datetime

from psycopg.rows import class_row

from ..messages import Reminder
from .database import Connection, Database
from .queries import load_queries

_SQL = load_queries(__file__)


async def add_reminder(
    connection: Connection, conversation: str, content: str, due_at: datetime
) -> None:
    """Keep a reminder, as part of the caller's transaction."""
    parameters = {"conversation": conversation, "content": content, "due_at": due_at}
    await connection.execute(_SQL["add"], parameters)


async def list_pending(database: Database, conversation: str) -> list[Reminder]:
    """The reminders of a conversation still to come, soonest first."""
    async with database.connection() as connection:
        cursor = connection.cursor(row_factory=class_row(Reminder))
        await cursor.execute(_SQL["pending"], {"conversation": conversation})
        return await cursor.fetchall()


async def next_due(connection: Connection) -> datetime | None:
    """When the next reminder or schedule is due, or tried again; None where there is none."""
    row = await (await connection.execute(_SQL["next_due"])).fetchone()
    return row[0] if row else None
