"""What is deleted in time, in small batches, so that tables do not grow without bound."""

from __future__ import annotations

from datetime import timedelta

from .database import Database
from .queries import load_queries

_SQL = load_queries(__file__)
_BATCH = 1000

KEEP_EVENTS = timedelta(days=30)


async def prune(database: Database) -> None:
    """Delete keys that have expired, and transitions and runs of schedules older than 30 days.

    The last transition of an agent stays, however old: it tells since when; so does the last
    run of a schedule.
    """
    for query in ("delete_expired_keys", "delete_old_events", "delete_old_runs"):
        deleted = _BATCH
        while deleted == _BATCH:
            async with database.connection() as connection:
                cursor = await connection.execute(_SQL[query], {"keep": KEEP_EVENTS})
                deleted = cursor.rowcount
