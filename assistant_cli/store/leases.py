"""Leases: which process holds an agent, until when, with a token that fences its writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from psycopg.rows import class_row

from ..crash_points import reach
from ..errors import ConflictError, DatabaseUnreachableError, LeaseLostError
from ..process_identity import ProcessIdentity, known_dead, own_identity
from .database import Connection, Database
from .queries import load_queries

_SQL = load_queries(__file__)
CHANNEL = "assistant_leases"

LEASE = timedelta(seconds=15)
RENEWAL = timedelta(seconds=5)


@dataclass(frozen=True)
class Lease:
    """Agents held by this process; `token` is larger than any holder's before it."""

    agents: tuple[str, ...]
    token: int


@dataclass(frozen=True)
class Holder:
    """Who holds an agent; `live` means renewed in time by the database's clock."""

    agent: str
    token: int
    host: str
    pid: int
    process: str
    acquired_at: datetime
    live: bool

    @property
    def gone(self) -> bool:
        """Certainly dead although its lease may still run: it was a process of this machine."""
        return known_dead(ProcessIdentity(self.host, self.pid, self.process))

    def __str__(self) -> str:
        since = self.acquired_at.astimezone().isoformat(" ", "seconds")
        return f"host {self.host}, pid {self.pid}, since {since}"


async def acquire(database: Database, agents: Sequence[str]) -> Lease:
    """Take the leases of all the agents, or of none.

    A holder that is certainly dead is not waited for.

    Raises:
        ConflictError: one of them is held; the message names the holder.
    """
    identity = own_identity()
    async with database.transaction() as connection:
        known = await read_holders(connection, agents)
        # Looked at without a lock first: a process that is suspended while it holds one would keep
        # the holder from renewing its lease, and others from taking over.
        if any(holder.live and not holder.gone for holder in known):
            raise _held(known)
        cursor = await connection.execute(
            _SQL["acquire"],
            {
                "agents": list(agents),
                "host": identity.host,
                "pid": identity.pid,
                "process": identity.key,
                "duration": LEASE,
                "dead": [holder.token for holder in known if holder.gone],
            },
        )
        tokens = [row[0] for row in await cursor.fetchall()]
        if len(tokens) < len(agents):
            holders = await read_holders(connection, agents)
            raise _held([holder for holder in holders if holder.token not in tokens])
        await connection.execute(_SQL["announce"])
        reach("lease.before")
    reach("lease.after")
    return Lease(tuple(agents), tokens[0])


def _held(holders: list[Holder]) -> ConflictError:
    other = [h for h in holders if h.live and not h.gone] or holders
    if not other:
        return ConflictError("the agent was taken by another process just now; try again")
    return ConflictError(f"{other[0].agent} is already held by {other[0]}")


async def find_holders(database: Database, agents: Sequence[str] | None = None) -> list[Holder]:
    """The holders of those of the agents, or of all, that are held or were not released."""
    async with database.connection() as connection:
        return await read_holders(connection, agents)


async def renew(connection: Connection, lease: Lease) -> None:
    """Prolong a lease, also one that has lapsed if nobody took it over.

    Raises:
        LeaseLostError: another process took an agent over.
    """
    parameters = {"agents": list(lease.agents), "token": lease.token, "duration": LEASE}
    reach("renewal.before")
    renewed = (await connection.execute(_SQL["renew"], parameters)).rowcount
    reach("renewal.after")
    if renewed < len(lease.agents):
        holders = await read_holders(connection, lease.agents)
        other = [holder for holder in holders if holder.token != lease.token]
        taker = f"{other[0].agent} was taken over by {other[0]}" if other else "it was removed"
        raise LeaseLostError(f"this process lost its lease: {taker}")


async def release(database: Database, lease: Lease, *, settle: bool = False) -> None:
    """Give the agents back, so that another process may take them at once.

    Args:
        settle: also close turns that are still open as interrupted, and write idle where the
            board still says running.
    """
    async with database.transaction() as connection:
        parameters = {"agents": list(lease.agents), "token": lease.token}
        cursor = await connection.execute(_SQL["release"], parameters)
        released = [row[0] for row in await cursor.fetchall()]
        if settle:
            # A statement that was given up may have begun a turn after the agent's last update.
            await connection.execute(_SQL["interrupt_open"], {**parameters, "agents": released})
            await connection.execute(_SQL["show_idle"], {"agents": released})
        await connection.execute(_SQL["announce"])
        reach("release.before")
    reach("release.after")


async def forget_dead_holder(database: Database, agent: str) -> None:
    """Remove the lease of a holder that is gone, before somebody else speaks for the agent."""
    async with database.transaction() as connection:
        dead = [holder.token for holder in await read_holders(connection, [agent]) if holder.gone]
        await connection.execute(_SQL["forget_expired"], {"agent": agent, "dead": dead})


async def guard(connection: Connection, agent: str, token: int, *, alone: bool = False) -> None:
    """Make sure, until the transaction ends, that this process may write for the agent.

    Args:
        alone: wait first for all other transactions that write for the agent, also for those that
            this process has given up, so that what they committed is seen.

    Raises:
        LeaseLostError: another process holds the agent.
        DatabaseUnreachableError: the lease lapsed and has to be renewed first; try again.
    """
    query = _SQL["guard_alone" if alone else "guard"]
    cursor = await connection.execute(query, {"agent": agent, "token": token})
    row = await cursor.fetchone()
    if row is None or not row[0]:
        raise LeaseLostError(f"this process no longer holds {agent}")
    if not row[1]:
        raise DatabaseUnreachableError(f"the lease of {agent} lapsed; waiting for its renewal")


async def read_holders(connection: Connection, agents: Sequence[str] | None) -> list[Holder]:
    """As `find_holders`, as part of the caller's transaction."""
    cursor = connection.cursor(row_factory=class_row(Holder))
    parameters = {"agents": None if agents is None else list(agents)}
    return await (await cursor.execute(_SQL["held"], parameters)).fetchall()
