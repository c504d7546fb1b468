"""What a run does beside its agents: renew the lease, bring them news, tidy up."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import aclosing, suppress
from datetime import datetime
from typing import Any

import psycopg

from .agents.conversation import ConversationAgent
from .agents.host import Agent, Host
from .errors import AssistantError, DatabaseUnreachableError, summary_of
from .store import answering, inbox, leases, turns
from .store.board import StatusBoard
from .store.database import Connection, Database
from .store.follow import Hints, Read, T, follow
from .store.leases import Lease
from .store.news import read_news
from .store.retention import prune

log = logging.getLogger(__name__)

_RENEWAL_PATIENCE_SECONDS = 3.0
_RETRY_SECONDS = 0.5
_NEWS_POLL_SECONDS = 10.0
_CANCELLATION_POLL_SECONDS = 1.0
_PRUNE_SECONDS = 600.0
_REPAIR_SECONDS = 5.0


def upkeep(host: Host, agents: list[Agent]) -> list[Coroutine[Any, Any, None]]:
    """The work beside the agents, each to go on until it is cancelled.

    Raises:
        LeaseLostError: another process took an agent over; the first of them does.
    """
    return [
        keep_lease(host.database, host.lease),
        _follow_news(host, agents),
        _follow_cancellations(host),
        _run_every(_PRUNE_SECONDS, lambda: prune(host.database)),
        keep_board(host.board),
    ]


async def keep_lease(database: Database, lease: Lease) -> None:
    """Renew a lease until cancelled, on a connection of its own.

    Raises:
        LeaseLostError: another process took an agent over.
    """
    failing = False
    while True:
        try:
            async with await database.connect() as connection:
                while True:
                    async with asyncio.timeout(_RENEWAL_PATIENCE_SECONDS):
                        await leases.renew(connection, lease)
                    if failing:
                        log.info("the database is back, and the lease is ours")
                    failing = False
                    await asyncio.sleep(leases.RENEWAL.total_seconds())
        except (psycopg.Error, TimeoutError, DatabaseUnreachableError) as error:
            if not failing:
                reason = summary_of(error) or "the database does not answer"
                log.warning("cannot renew the lease, trying on: %s", reason)
            failing = True
        await asyncio.sleep(_RETRY_SECONDS)


async def _follow_news(host: Host, agents: list[Agent]) -> None:
    """Wake the agents that have something to do.

    All of them for a new due time, a requested tick or a lost connection, and those that answer
    messages for messages. The messages of a worker that is gone are given back first.
    """
    database, token = host.database, host.lease.token
    answering_ones = [agent for agent in agents if isinstance(agent, ConversationAgent)]
    known: list[tuple[datetime | None, datetime | None, int]] = []

    async def read(connection: Connection, hints: Hints) -> list[Agent] | None:
        if hints is not None and hints <= {inbox.SENT, inbox.ANSWERED}:
            woken = [a for a in answering_ones if inbox.SENT in hints or a.waits_for_turns]
            return list[Agent](woken) or None
        news = await read_news(connection, token)
        if news.orphaned and answering_ones:
            await answering.return_orphaned(connection, token)
        facts = news.next_due, news.last_request, database.losses
        changed, known[:] = [facts] != known, [facts]
        if changed:
            return agents
        return list[Agent](answering_ones) if news.waiting or news.orphaned else None

    def wake(woken: list[Agent]) -> None:
        for agent in woken:
            agent.wake()

    await _follow_patiently(database, inbox.CHANNEL, read, wake, _NEWS_POLL_SECONDS)


async def _follow_cancellations(host: Host) -> None:
    """Cancel the turns that somebody asked to be ended."""

    async def read(connection: Connection, _: Hints) -> list[int] | None:
        if not host.executing:
            return None
        return await turns.read_cancelled(connection) or None

    def cancel(requested: list[int]) -> None:
        for turn_id in requested:
            host.cancel(turn_id)

    await _follow_patiently(host.database, turns.CHANNEL, read, cancel, _CANCELLATION_POLL_SECONDS)


async def _follow_patiently(
    database: Database,
    channel: str,
    read: Read[T],
    act: Callable[[T], None],
    poll: float,
) -> None:
    """Act on what is read; unlike `follow`, also outlive a first connection that fails."""
    while True:
        with suppress(DatabaseUnreachableError):
            async with aclosing(follow(database, channel, read, poll=poll)) as states:
                async for state in states:
                    act(state)
        await asyncio.sleep(_RETRY_SECONDS)


async def _run_every(seconds: float, work: Callable[[], Awaitable[None]]) -> None:
    failing = False
    while True:
        try:
            await work()
            failing = False
        except AssistantError as error:
            if not failing:
                log.warning("cannot keep things in order, trying on: %s", error)
            failing = True
        await asyncio.sleep(seconds)


async def keep_board(board: StatusBoard) -> None:
    """Put back until cancelled what others overwrite of what this process has said."""
    await _run_every(_REPAIR_SECONDS, lambda: _repair(board))


async def _repair(board: StatusBoard) -> None:
    if await board.repair():
        log.warning("another program had overwritten our part of the board; it is back")
