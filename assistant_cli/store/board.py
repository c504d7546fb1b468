"""The status board: what each agent does, committed before it is visible in memory."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, get_args

from ..crash_points import reach
from ..errors import (
    BadDataError,
    ConflictError,
    DatabaseUnreachableError,
    LeaseLostError,
)
from ..json_values import check_text, load_json
from ..messages import AGENTS, AgentStatus
from .batches import Batches, Write, still_wanted
from .database import Database
from .leases import Lease, find_holders, forget_dead_holder
from .queries import load_queries

_SQL = load_queries(__file__)

IDLE: Mapping[str, str | None] = {"status": "idle", "detail": None}
MAX_DETAIL_BYTES = 2_000
_AGAIN_SECONDS = 0.01
_AGENT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/-]{0,99}", re.ASCII)


@dataclass
class _Update(Write[None]):
    agent: str
    entry: dict[str, str | None]
    token: int | None


class StatusBoard:
    """The board of one database, as this process last wrote or read it.

    `lease`: the agents this process holds; without one it may write only for agents that
    nobody holds.
    """

    def __init__(self, database: Database, lease: Lease | None = None) -> None:
        self.database = database
        self.lease = lease
        self._entries: dict[str, Any] = {}
        self._told = 0
        self._last_told: dict[str, tuple[int, Any]] = {}
        self._writing = asyncio.Lock()
        self._batches = Batches(self._write)

    def get(self) -> dict[str, Any]:
        """The board in its stored shape, from memory; the caller's own copy."""
        copy: dict[str, Any] = json.loads(json.dumps(self._entries))
        return copy

    def get_entry(self, agent: str) -> Any:
        """What the board says of an agent, from memory; None where it says nothing."""
        return self._entries.get(agent)

    def format(self) -> str:
        """The board as lines of text, in the order of `assistant status`.

        Such as `heartbeat: running — writing a recipe`.
        """
        agents = sorted(self._entries, key=lambda agent: (agent not in AGENTS, agent))
        entries = [(agent, self._entries[agent]) for agent in agents]
        return "\n".join(
            format_entry(agent, entry["status"], entry["detail"])
            for agent, entry in entries
            if isinstance(entry, dict) and "status" in entry and "detail" in entry
        )

    async def update(self, agent: str, entry: Mapping[str, Any]) -> None:
        """Replace an agent's entry, and return once that is committed.

        Updates that arrive while a commit is under way share the next one, in order.

        Args:
            agent: the agent's name.
            entry: `{"status": "idle" | "running" | "failed", "detail": text or None}`;
                a missing detail is None.

        Raises:
            BadDataError: the name or the entry is not of that shape.
            LeaseLostError: this process held the agent and another one took it over.
            ConflictError: another process holds the agent.
            DatabaseUnreachableError: nothing is known to be written; try again.
        """
        update = self._make_update(check_agent(agent), _check_entry(entry))
        await self._batches.write(update)

    def _make_update(self, agent: str, entry: dict[str, str | None]) -> _Update:
        token = self.lease.token if self.lease and agent in self.lease.agents else None
        return _Update(asyncio.get_running_loop().create_future(), agent, entry, token)

    async def read(self) -> dict[str, Any]:
        """Read the stored board into memory and return it as `get` does."""
        before = self._told
        async with self.database.connection() as connection:
            row = await (await connection.execute(_SQL["read"])).fetchone()
        # Entries that this process committed during the read may be newer than what it found.
        last = self._last_told.items()
        newer = {agent: entry for agent, (told, entry) in last if told > before}
        self._entries = {**_entries_of(row), **newer}
        return self.get()

    async def repair(self) -> bool:
        """Write the entries of the agents held here again where the store says otherwise.

        Another program may have replaced the whole board. Returns whether that was so.
        """
        held = self.lease.agents if self.lease else ()
        async with self._writing:
            async with self.database.connection() as connection:
                row = await (await connection.execute(_SQL["read"])).fetchone()
            found = _entries_of(row)
            said = [agent for agent in held if agent in self._entries]
            wrong = [agent for agent in said if found.get(agent) != self._entries[agent]]
            # Under the same lock: else a newer update that waits might be written first.
            updates = [self._make_update(agent, self._entries[agent]) for agent in wrong]
            try:
                await self._put(updates)
            finally:
                # Retrieved in any case, or asyncio would log that it never was.
                refusals = [u.written.exception() for u in updates if u.written.done()]
        for refusal in filter(None, refusals):
            raise refusal
        return bool(wrong)

    @asynccontextmanager
    async def shown_by(self, agent: str) -> AsyncIterator[Callable[[dict[str, Any] | None], None]]:
        """Show in memory an entry that a statement of the caller's writes among other things.

        Yields a function to call with the entry once it is committed, or with None where the
        statement wrote none.
        """
        # Locked: else an entry committed after that one might be shown in memory before it.
        async with self._writing:

            def tell(entry: dict[str, Any] | None) -> None:
                if entry is not None:
                    self._tell(agent, entry)

            yield tell

    async def _write(self, batch: list[_Update]) -> None:
        async with self._writing:
            await self._put(batch)

    async def _put(self, batch: list[_Update]) -> None:
        while batch := still_wanted(batch):
            batch, refused = await self._commit(batch)
            if not refused:
                break
            await self._refuse([update for update in batch if update.agent in refused])
        for update in batch:
            self._tell(update.agent, update.entry)
            update.succeed(None)

    def _tell(self, agent: str, entry: dict[str, Any]) -> None:
        """Show in memory what is committed."""
        self._told += 1
        self._last_told[agent] = self._told, entry
        self._entries[agent] = entry

    async def _commit(self, batch: list[_Update]) -> tuple[list[_Update], set[str]]:
        """Write the updates still wanted in one statement; returns them, and the agents refused."""
        async with self.database.connection() as connection:
            while batch := still_wanted(batch):
                query, parameters = _statement(batch)
                reach("board.before")
                cursor = await connection.execute(_SQL[query], parameters)
                reach("board.after")
                row = await cursor.fetchone()
                assert row is not None
                if row[0] is not None:
                    return batch, set(row[0])
                # The statement gave up waiting for the commit of another process.
                await asyncio.sleep(_AGAIN_SECONDS)
        return [], set()

    async def _refuse(self, updates: list[_Update]) -> None:
        holders = await find_holders(self.database, [update.agent for update in updates])
        by_agent = {holder.agent: holder for holder in holders}
        for update in updates:
            update.fail(_refusal(update, by_agent.get(update.agent)))


def _statement(batch: list[_Update]) -> tuple[str, dict[str, Any]]:
    """The query that writes a batch, and its parameters."""
    if len(batch) == 1:
        (update,) = batch
        entry = json.dumps(update.entry)
        return "update_one", {"agent": update.agent, "entry": entry, "token": update.token}
    tokens = {update.agent: update.token for update in batch if update.token is not None}
    return "update", {"rounds": json.dumps(_rounds(batch)), "tokens": json.dumps(tokens)}


def _rounds(updates: list[_Update]) -> list[dict[str, dict[str, str | None]]]:
    """The entries in rounds to be written one after the other, each agent once in a round."""
    rounds: list[dict[str, dict[str, str | None]]] = [{}]
    for update in updates:
        for entries in rounds:
            if update.agent not in entries:
                break
        else:
            rounds.append(entries := {})
        entries[update.agent] = update.entry
    return rounds


def _entries_of(row: tuple[Any, ...] | None) -> dict[str, Any]:
    """The stored board; empty where it is missing or holds what is no board."""
    try:
        stored = load_json(row[0]) if row else {}
    except BadDataError:
        return {}
    return stored if isinstance(stored, dict) else {}


def _refusal(update: _Update, holder: Any) -> Exception:
    if update.token is None:
        who = f" by {holder}" if holder else ""
        return ConflictError(f"{update.agent} is held{who}; only its holder writes its status")
    if holder is None or holder.token != update.token:
        return LeaseLostError(f"this process no longer holds {update.agent}")
    return DatabaseUnreachableError(f"the lease of {update.agent} lapsed; waiting for its renewal")


def check_agent(agent: str) -> str:
    """Check the name of an agent: 1 to 100 letters, digits and `._:@/-`.

    Raises:
        BadDataError: it is another.
    """
    if not _AGENT_NAME.fullmatch(agent):
        raise BadDataError(
            f"{agent!r} is no name for an agent; use letters, digits and ._:@/-, at most 100"
        )
    return agent


def shorten_detail(detail: str) -> str:
    """A detail cut to what an entry may hold."""
    data = detail.encode("utf-8", "replace").replace(b"\x00", b"?")
    if len(data) <= MAX_DETAIL_BYTES:
        return data.decode()
    return data[: MAX_DETAIL_BYTES - 3].decode("utf-8", "ignore") + "…"


def format_entry(agent: str, status: Any, detail: Any) -> str:
    """An entry as one line, whatever is in it: nobody's detail looks like another entry."""
    text = f"{agent}: {status}" + (f" — {detail}" if detail else "")
    return " ".join(text.split())


def check_status(status: str) -> AgentStatus:
    """Check a status.

    Raises:
        BadDataError: it is not `idle`, `running` or `failed`.
    """
    match status:
        case "idle" | "running" | "failed":
            return status
        case _:
            raise BadDataError(f"{status!r} is no status; it is {', '.join(get_args(AgentStatus))}")


def _check_entry(entry: Mapping[str, Any]) -> dict[str, str | None]:
    if not entry.keys() <= {"status", "detail"} or "status" not in entry:
        raise BadDataError('an entry has the form {"status": …, "detail": …}')
    detail = entry.get("detail")
    if detail is not None and not isinstance(detail, str):
        raise BadDataError("the detail of an entry is text or None")
    if detail is not None:
        check_text(detail)
        if len(detail.encode()) > MAX_DETAIL_BYTES:
            raise BadDataError(f"the detail of an entry has at most {MAX_DETAIL_BYTES:,} bytes")
    return {"status": check_status(str(entry["status"])), "detail": detail}


async def create_status_board(database: Database, lease: Lease | None = None) -> StatusBoard:
    """A board on which the two agents, or those of the lease, are idle, which is written.

    Raises:
        ConflictError: a running process holds one of them.
    """
    board = StatusBoard(database, lease)
    await board.read()
    agents = lease.agents if lease else AGENTS
    if lease is None:
        for agent in agents:
            await forget_dead_holder(database, agent)
    updates = [board.update(agent, IDLE) for agent in agents]
    # With return_exceptions, so that all have ended when this returns, also where one is refused.
    for result in await asyncio.gather(*updates, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
    return board
