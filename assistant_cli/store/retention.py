"""What is closed or deleted in time, in small batches, so that no table grows without bound."""

from __future__ import annotations

from datetime import timedelta

from .database import Database
from .queries import load_queries

_SQL = load_queries(__file__)
_BATCH = 1000

KEEP = timedelta(days=30)


async def prune(database: Database) -> None:
    """Close turns that nobody can end; delete keys that have expired, and what is 30 days old.

    That is transitions of the board, runs of schedules, schedules that are over, the steps of
    turns, and turns that were skipped or silent. The last transition of an agent stays, however
    old: it tells since when; so does the last run of a schedule, and the last skipped and the
    last silent turn of an agent. Messages stay, with the turns they belong to.
    """
    for query in _SQL.values():
        deleted = _BATCH
        while deleted == _BATCH:
            async with database.connection() as connection:
                deleted = (await connection.execute(query, {"keep": KEEP})).rowcount
