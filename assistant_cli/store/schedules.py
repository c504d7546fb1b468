"""Schedules: texts that come at a time, every so often, or as a cron line says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from psycopg.rows import class_row

from ..errors import NotFoundError
from ..messages import MAIN_CONVERSATION, Action, check_content, check_name
from ..timing import Kind, Timing
from .database import Connection, Database
from .queries import load_queries

_SQL = load_queries(__file__)
_MAX_SHOWN = 200

CatchUp = Literal["once", "skip"]
ScheduleState = Literal["active", "done", "cancelled"]


@dataclass(frozen=True)
class Schedule:
    """What happens when, and how far it has come.

    Attributes:
        action: `ask` puts the text into the inbox, `say` says it, `remind` says it as a reminder.
        spec: the duration or the cron line; None for a single time.
        zone: the IANA name of the zone whose wall clock counts; None where none does.
        catch_up: whether times that were missed are made up for `once`, or skipped.
        due_at: the next due time while it is active, and the last after that.
        attempts: how often the firing at `due_at` has failed; `error` is why, the last time.
    """

    id: int
    conversation: str
    content: str
    action: Action
    kind: Kind
    spec: str | None
    zone: str | None
    catch_up: CatchUp
    state: ScheduleState
    due_at: datetime
    created_at: datetime
    fired_at: datetime | None
    attempts: int
    retry_at: datetime | None
    error: str | None


@dataclass(frozen=True)
class Run:
    """What became of a due time; `missed` counts the times it stands for that were missed.

    Attributes:
        requested: somebody asked for it; `due_at` is when.
    """

    due_at: datetime
    outcome: Literal["fired", "skipped", "failed"]
    missed: int
    requested: bool
    attempts: int
    error: str | None
    message_id: UUID | None
    at: datetime


async def add_schedule(
    database: Database,
    content: str,
    timing: Timing,
    *,
    conversation: str = MAIN_CONVERSATION,
    action: Action = "ask",
    catch_up: CatchUp = "once",
) -> int:
    """Keep a schedule; it is committed when this returns its id.

    Raises:
        BadDataError: the text or the name of the conversation cannot be a message's.
    """
    check_content(content)
    check_name(conversation, "conversation")
    async with database.transaction() as connection:
        return await insert_schedule(connection, conversation, content, timing, action, catch_up)


async def insert_schedule(
    connection: Connection,
    conversation: str,
    content: str,
    timing: Timing,
    action: Action,
    catch_up: CatchUp = "once",
) -> int:
    """Keep a schedule, as part of the caller's transaction; returns its id."""
    parameters = {
        "conversation": conversation,
        "content": content,
        "action": action,
        "catch_up": catch_up,
        **asdict(timing),
    }
    row = await (await connection.execute(_SQL["add"], parameters)).fetchone()
    assert row is not None
    return int(row[0])


async def list_schedules(
    database: Database,
    *,
    conversation: str | None = None,
    over: bool = False,
    limit: int | None = None,
) -> list[Schedule]:
    """The active schedules, soonest first.

    Args:
        conversation: only of this one.
        over: also those that are done or cancelled.
        limit: how many at most; None for all.
    """
    parameters = {"over": over, "conversation": conversation, "limit": limit}
    async with database.connection() as connection:
        cursor = connection.cursor(row_factory=class_row(Schedule))
        await cursor.execute(_SQL["list"], parameters)
        return await cursor.fetchall()


async def read_formatted(database: Database, conversation: str, limit: int) -> str:
    """What is to come in a conversation, soonest first, a line each; empty where nothing is."""
    schedules = await list_schedules(database, conversation=conversation, limit=limit)
    return "\n".join(map(_format, schedules))


async def get_schedule(database: Database, schedule_id: int) -> tuple[Schedule, list[Run]]:
    """A schedule and its last ten runs, the last first.

    Raises:
        NotFoundError: there is no such schedule.
    """
    parameters = {"id": schedule_id}
    async with database.transaction() as connection:
        schedules = connection.cursor(row_factory=class_row(Schedule))
        schedule = await (await schedules.execute(_SQL["get"], parameters)).fetchone()
        if schedule is None:
            raise _unknown(schedule_id)
        cursor = connection.cursor(row_factory=class_row(Run))
        return schedule, await (await cursor.execute(_SQL["runs"], parameters)).fetchall()


async def edit_schedule(
    database: Database,
    schedule_id: int,
    *,
    content: str | None = None,
    catch_up: CatchUp | None = None,
    retime: Callable[[Schedule], Timing] | None = None,
) -> None:
    """Change an active schedule; what is None stays.

    Args:
        retime: makes the new timing from the schedule as it is.

    Raises:
        NotFoundError: there is no such schedule, or it is over.
        BadDataError: the text cannot be a message's.
    """
    if content is not None:
        check_content(content)
    async with database.transaction() as connection:
        schedule = await lock_schedule(connection, schedule_id)
        old = Timing(schedule.kind, schedule.spec, schedule.zone, schedule.due_at)
        parameters = {
            "id": schedule_id,
            "content": schedule.content if content is None else content,
            "catch_up": catch_up or schedule.catch_up,
            **asdict(retime(schedule) if retime else old),
        }
        await connection.execute(_SQL["edit"], parameters)


async def cancel_schedule(database: Database, schedule_id: int) -> None:
    """Let a schedule fire no more; it is kept, with its runs.

    Raises:
        NotFoundError: there is no such schedule, or it is over.
    """
    async with database.transaction() as connection:
        schedule = await lock_schedule(connection, schedule_id)
        await cancel_active(connection, schedule.conversation, schedule_id)


async def cancel_active(connection: Connection, conversation: str, schedule_id: int) -> None:
    """Cancel a schedule, as part of the caller's transaction.

    One that is over, or of another conversation, stays as it is.
    """
    parameters = {"id": schedule_id, "conversation": conversation}
    await connection.execute(_SQL["cancel"], parameters)


async def lock_schedule(
    connection: Connection, schedule_id: int, allowed: Sequence[ScheduleState] = ("active",)
) -> Schedule:
    """A schedule that nobody else changes until the caller's transaction ends.

    Raises:
        NotFoundError: there is no such schedule, or it is in no state that is allowed.
    """
    cursor = connection.cursor(row_factory=class_row(Schedule))
    schedule = await (await cursor.execute(_SQL["lock"], {"id": schedule_id})).fetchone()
    if schedule is None:
        raise _unknown(schedule_id)
    if schedule.state not in allowed:
        raise NotFoundError(f"schedule {schedule_id} is {schedule.state}; add another one")
    return schedule


def _unknown(schedule_id: int) -> NotFoundError:
    return NotFoundError(
        f"there is no schedule {schedule_id}; `assistant schedule ls --all` lists them"
    )


def _format(schedule: Schedule) -> str:
    due_at = schedule.due_at.astimezone().isoformat(" ", "minutes")
    repetition = "" if schedule.kind == "at" else f" {schedule.kind} {schedule.spec}"
    zone = f" {schedule.zone}" if schedule.kind == "cron" else ""
    text = " ".join(schedule.content.split())
    shown = text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"
    return f"{schedule.id}: {due_at}{repetition}{zone}, {schedule.action}: {shown}"
