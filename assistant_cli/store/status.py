"""One snapshot of everything `status` shows, read by the command line and by `wait`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from psycopg.rows import class_row, dict_row

from ..active_hours import start_of_day
from ..clock import SystemClock
from ..messages import HEARTBEAT, Usage, is_conversation
from ..process_identity import ProcessIdentity, known_dead
from .database import Connection, Database
from .follow import Hints, follow
from .queries import load_queries
from .turns import read_spend

_SQL = load_queries(__file__)


@dataclass(frozen=True)
class AgentRow:
    """An agent on the board, and whether the process that said so is still alive.

    `live` and `stale` are never both true; neither means that nobody holds the agent.
    """

    agent: str
    status: str | None
    detail: str | None
    since: datetime | None
    updated_at: datetime | None
    live: bool
    stale: bool
    host: str | None
    pid: int | None
    process: str | None
    held_since: datetime | None


@dataclass(frozen=True)
class Inbox:
    """Messages not answered yet; `oldest_seconds` is the age of the oldest of them."""

    waiting: int
    working: int
    failed: int
    oldest_seconds: float | None


@dataclass(frozen=True)
class Snapshot:
    """The state of everything at `now`, the database's clock.

    Attributes:
        next_tick_at: when the heartbeat ticks next; `off`: never; None: nobody hosts it.
        paused: since when, and until when, the heartbeat is paused, in words; None: it is not.
        spent: what all turns have used since `midnight`, by the host's wall clock.
    """

    agents: Sequence[AgentRow]
    inbox: Inbox
    last_tick_at: str | None
    next_tick_at: str | None
    paused: str | None
    spent: Usage
    midnight: datetime
    now: datetime

    @property
    def answering(self) -> bool:
        """Whether a process is up that answers messages."""
        return any(row.live and is_conversation(row.agent) for row in self.agents)

    def find(self, agent: str) -> AgentRow | None:
        return next((row for row in self.agents if row.agent == agent), None)

    def select(self, agents: Sequence[str]) -> list[AgentRow]:
        """Those of the agents that are on the board; all where none are named."""
        return [row for row in self.agents if not agents or row.agent in agents]


@dataclass(frozen=True)
class Transition:
    """One change of an agent's entry."""

    agent: str
    status: str | None
    detail: str | None
    at: datetime


async def read_snapshot(connection: Connection) -> Snapshot:
    """Read the snapshot as of one moment."""
    midnight = start_of_day(SystemClock().now())
    async with connection.transaction():
        await connection.execute(_SQL["one_moment"])
        agents = await _read_agents(connection)
        cursor = connection.cursor(row_factory=dict_row)
        inbox = await (await cursor.execute(_SQL["inbox"])).fetchone()
        ticks = await (await cursor.execute(_SQL["heartbeat"])).fetchall()
        spent = await read_spend(connection, midnight)
    assert inbox is not None
    now = inbox.pop("now")
    times = {row["key"]: row["value"] for row in ticks}
    hosted = any(row.live for row in agents if row.agent == HEARTBEAT)
    return Snapshot(
        agents=agents,
        inbox=Inbox(**inbox),
        last_tick_at=times.get("heartbeat_last_tick_at"),
        next_tick_at=times.get("heartbeat_next_tick_at") if hosted else None,
        paused=times.get("heartbeat_paused"),
        spent=spent,
        midnight=midnight,
        now=now,
    )


async def read_formatted(database: Database) -> str:
    """The board as lines of text, as `format_agents` does."""
    async with database.connection() as connection:
        return format_agents(await _read_agents(connection))


def format_agents(rows: Sequence[AgentRow]) -> str:
    """A line an agent; of one whose process is gone it says so."""
    from .board import format_entry

    gone = " (stale: its process is gone)"
    return "\n".join(
        format_entry(row.agent, row.status, row.detail) + (gone if row.stale else "")
        for row in rows
    )


async def _read_agents(connection: Connection) -> list[AgentRow]:
    cursor = connection.cursor(row_factory=class_row(AgentRow))
    rows = await (await cursor.execute(_SQL["agents"])).fetchall()
    return [_seen_from_here(row) for row in rows]


async def get_snapshot(database: Database) -> Snapshot:
    """Read the snapshot once."""
    async with database.connection() as connection:
        return await read_snapshot(connection)


def follow_snapshots(database: Database) -> AsyncGenerator[Snapshot]:
    """Yield the snapshot after each change of the board, and at least every second.

    A lease that lapses announces itself to nobody, hence the short poll.
    """

    async def read(connection: Connection, hints: Hints) -> Snapshot | None:
        if hints is not None and "status_board" not in hints:
            return None
        return await read_snapshot(connection)

    return follow(database, "assistant_kv", read, poll=1.0, standby=True)


async def read_transitions(
    database: Database, agents: Sequence[str], since: timedelta | None, limit: int
) -> list[Transition]:
    """The last transitions, oldest first."""
    parameters = {"agents": list(agents) or None, "since": since, "limit": limit}
    async with database.connection() as connection:
        cursor = connection.cursor(row_factory=class_row(Transition))
        rows = await (await cursor.execute(_SQL["history"], parameters)).fetchall()
    return rows[::-1]


def _seen_from_here(row: AgentRow) -> AgentRow:
    """On the holder's own host its death is known at once, without waiting for the lease."""
    if not row.live or row.host is None or row.pid is None or row.process is None:
        return row
    if not known_dead(ProcessIdentity(row.host, row.pid, row.process)):
        return row
    return replace(row, live=False, stale=True)
