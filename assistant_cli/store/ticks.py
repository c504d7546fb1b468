"""The ticks of agents whose turns come at their times.

An agent's anchor is the kv key `<agent>_last_tick_at`, a time in ISO 8601 with zone, so that a
restart neither delays nor repeats a tick; `<agent>_next_tick_at` tells when the next is due.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta

import psycopg

from ..crash_points import reach
from ..errors import NotFoundError, StaleError, summary_of
from ..messages import (
    MAIN_CONVERSATION,
    SILENCE,
    Effect,
    Message,
    Outcome,
    Trigger,
    Turn,
)
from . import inbox, turns
from .database import Connection, Database
from .effects import apply_effect
from .follow import Hints, follow
from .kv import store_text
from .leases import guard, read_holders
from .queries import load_queries

_SQL = load_queries(__file__)


async def recover(database: Database, agent: str, token: int) -> None:
    """Close the turns that an earlier holder left open."""
    async with database.transaction() as connection:
        await guard(connection, agent, token)
        await turns.interrupt_open(connection, agent)


async def read_last_tick(database: Database, agent: str) -> datetime | None:
    """When the last tick was; None where there was none, or the key holds no time."""
    async with database.connection() as connection:
        text = await _read_text(connection, f"{agent}_last_tick_at")
    return _moment(text)


async def announce_next(
    database: Database, agent: str, token: int, next_tick: datetime | None
) -> None:
    """Keep when the next tick is due, for those who look; None means never."""
    async with database.transaction() as connection:
        await guard(connection, agent, token)
        await _store_next(connection, agent, next_tick)


async def request(database: Database, agent: str) -> datetime:
    """Ask for a tick now; returns the time of the request, on the database's clock.

    Raises:
        NotFoundError: no process hosts the agent.
    """
    async with database.transaction() as connection:
        if not await _is_hosted(connection, agent):
            raise NotFoundError(f"{agent} is not running; start `assistant run`")
        row = await (await connection.execute(_SQL["now"])).fetchone()
        assert row is not None
        await store_text(connection, _request_key(agent), _iso(row[0]))
        await inbox.announce(connection)
    moment: datetime = row[0]
    return moment


async def is_requested(database: Database, agent: str) -> bool:
    """Whether somebody asked for a tick that has not begun."""
    async with database.connection() as connection:
        return await _read_text(connection, _request_key(agent)) is not None


async def wait_for_requested(database: Database, agent: str, since: datetime) -> int:
    """The id of the first turn asked for since a time, once it has ended.

    Raises:
        StaleError: the process that hosted the agent is gone.
    """

    async def read(connection: Connection, _: Hints) -> int | None:
        cursor = await connection.execute(_SQL["requested_tick"], {"agent": agent, "since": since})
        row = await cursor.fetchone()
        if row is None and not await _is_hosted(connection, agent):
            raise StaleError(f"the process that hosted {agent} is gone; the request is kept")
        return row[0] if row else None

    async with aclosing(follow(database, inbox.CHANNEL, read, poll=1.0)) as found:
        return await anext(found)


async def find_last_tick(database: Database, agent: str) -> int:
    """The id of the last tick's turn that has ended.

    Raises:
        NotFoundError: there is none.
    """
    async with database.connection() as connection:
        row = await (await connection.execute(_SQL["last_tick"], {"agent": agent})).fetchone()
    if row is None:
        raise NotFoundError(f"{agent} has not ticked yet")
    return int(row[0])


async def begin(
    database: Database,
    agent: str,
    token: int,
    model: str,
    now: datetime,
    next_tick: datetime | None,
) -> Turn:
    """Begin the turn of a tick and move the anchor, in one transaction."""
    async with database.transaction() as connection:
        await guard(connection, agent, token)
        cursor = await connection.execute(_SQL["delete"], {"key": _request_key(agent)})
        trigger: Trigger = "request" if cursor.rowcount else "timer"
        await store_text(connection, f"{agent}_last_tick_at", _iso(now))
        await _store_next(connection, agent, next_tick)
        turn = await turns.begin(connection, agent, trigger, MAIN_CONVERSATION, token, model)
        reach("tick.before")
    reach("tick.after")
    return turn


async def finish(
    database: Database,
    token: int,
    turn: Turn,
    said: str | None,
    effects: Sequence[Effect],
    *,
    skipped: str | None = None,
    report_after: timedelta | None = None,
) -> Outcome:
    """Say what there is to say and end the turn.

    Doing it again after a lost connection says nothing twice.

    Args:
        said: None, only space and `[no action needed]` are silence.
        effects: what the turn changes besides.
        skipped: why its work was left out, where it was.
        report_after: each message that failed, or is unanswered for so long, is reported, once.
    """
    text = _spoken(said)
    async with database.transaction() as connection:
        await guard(connection, turn.agent, token)
        unanswered = []
        if report_after is not None:
            unanswered = await inbox.take_unreported(connection, report_after)
        outcome = _outcome(bool(unanswered or text or effects), skipped)
        if not await turns.end(connection, turn, outcome, skipped):
            # Kept by an attempt before this one: nothing is marked as reported again.
            raise psycopg.Rollback
        for conversation, report in _reports(unanswered).items():
            await inbox.say(connection, turn, report, source=turn.agent, conversation=conversation)
        if text:
            await inbox.say(connection, turn, text, source=turn.agent)
        for number, effect in enumerate(effects):
            await apply_effect(connection, turn, effect, number)
        await inbox.announce(connection)
        reach("thought.before")
    reach("thought.after")
    return outcome


def _outcome(done: bool, skipped: str | None) -> Outcome:
    if done:
        return "done"
    return "skipped" if skipped else "silent"


async def end_without_result(
    database: Database, token: int, turn: Turn, outcome: Outcome, error: str | None
) -> None:
    """End a turn that was skipped, failed or interrupted."""
    async with database.transaction() as connection:
        await guard(connection, turn.agent, token)
        await turns.end(connection, turn, outcome, error)
        await inbox.announce(connection)


async def pause(database: Database, agent: str, length: timedelta | None) -> str:
    """Let an agent skip its ticks, for a while or until it is resumed; returns it in words."""
    async with database.transaction() as connection:
        row = await (await connection.execute(_SQL["now"])).fetchone()
        assert row is not None
        until = f" until {_iso(row[0] + length)}" if length else ""
        words = f"since {_iso(row[0])}{until}"
        await store_text(connection, _pause_key(agent), words, length)
    return words


async def resume(database: Database, agent: str) -> bool:
    """End a pause; returns whether there was one."""
    async with database.connection() as connection:
        cursor = await connection.execute(_SQL["delete"], {"key": _pause_key(agent)})
        return cursor.rowcount > 0


async def read_pause(database: Database, agent: str) -> str | None:
    """Since when, and until when, an agent is paused, in words; None where it is not."""
    async with database.connection() as connection:
        return await _read_text(connection, _pause_key(agent))


def _spoken(said: str | None) -> str:
    text = (said or "").strip()
    return "" if text.lower() == SILENCE else text


async def _is_hosted(connection: Connection, agent: str) -> bool:
    holders = await read_holders(connection, [agent])
    return any(holder.live and not holder.gone for holder in holders)


def _reports(messages: Sequence[Message]) -> dict[str, str]:
    lines: dict[str, list[str]] = {}
    for message in messages:
        moment = message.created_at.astimezone().strftime("%Y-%m-%d %H:%M")
        state = (
            f"failed: {summary_of(message.error)}" if message.state == "failed" else "is unanswered"
        )
        lines.setdefault(message.conversation, []).append(
            f"The message of {moment}, {_shorten(message.content)!r}, {state}"
        )
    return {conversation: "\n".join(texts) for conversation, texts in lines.items()}


def _shorten(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:59] + "…"


async def _read_text(connection: Connection, key: str) -> str | None:
    row = await (await connection.execute(_SQL["text"], {"key": key})).fetchone()
    return row[0] if row else None


async def _store_next(connection: Connection, agent: str, moment: datetime | None) -> None:
    await store_text(connection, f"{agent}_next_tick_at", _iso(moment) if moment else "off")


def _request_key(agent: str) -> str:
    return f"tick_requests/{agent}"


def _pause_key(agent: str) -> str:
    return f"{agent}_paused"


def _moment(text: str | None) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text) if text else None
        return moment.astimezone(UTC) if moment and moment.tzinfo else None
    except (ValueError, OverflowError):
        return None


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
