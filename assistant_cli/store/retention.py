"""What is closed or deleted in time, in small batches, so that no table grows without bound."""

from __future__ import annotations

from datetime import timedelta

from .database import Database
from .queries import load_queries

_SQL = load_queries(__file__)
_BATCH = 1000

KEEP_EVENTS = timedelta(days=30)


async def prune(database: Database) -> None:
    """Close turns that nobody can end; delete keys that have expired, and what is old.

    Old are transitions and runs of schedules of more than 30 days. The last transition of an
    agent stays, however old: it tells since when; so does the last run of a schedule.
    """
    for query in ("close_orphans", "delete_expired_keys", "delete_old_events", "delete_old_runs"):
        deleted = _BATCH
        while deleted == _BATCH:
            async with database.connection() as connection:
                cursor = await connection.execute(_SQL[query], {"keep": KEEP_EVENTS})
                deleted = cursor.rowcount
