"""What there may be to do, in one look that costs the same however much there is."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from psycopg.rows import class_row

from .database import Connection
from .queries import load_queries

_SQL = load_queries(__file__)


@dataclass(frozen=True)
class News:
    """What may wake an agent.

    Attributes:
        waiting: whether a message waits.
        next_due: when the next reminder or schedule is due; None: there is none.
        orphaned: whether a turn is open that answers messages and whose process is gone.
        last_request: when a tick was last asked for and not begun; None: none is.
    """

    waiting: bool
    next_due: datetime | None
    last_request: datetime | None
    orphaned: bool


async def read_news(connection: Connection, token: int) -> News:
    """Look at what there may be to do; `token` is that of the process that looks."""
    cursor = connection.cursor(row_factory=class_row(News))
    news = await (await cursor.execute(_SQL["news"], {"token": token})).fetchone()
    assert news is not None
    return news
