"""Schedules as they are kept: what is over, runs on request, old runs and older schemas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from assistant_cli.errors import BadDataError, NotFoundError
from assistant_cli.store import retention
from assistant_cli.store.database import Database
from assistant_cli.store.firing import run_schedule
from assistant_cli.store.migrations import list_migrations, migrate
from assistant_cli.store.schedules import (
    add_schedule,
    cancel_schedule,
    edit_schedule,
    get_schedule,
    list_schedules,
)
from assistant_cli.timing import plan_every

from .hosting import rows
from .test_schedules import ASKED, SATURDAY


async def test_what_is_not_there_or_over_can_be_neither_edited_nor_cancelled(
    database: Database,
) -> None:
    number = await add_schedule(database, "x", plan_every("1h", SATURDAY))
    await cancel_schedule(database, number)
    changes: list[Callable[[int], Any]] = [
        lambda number: edit_schedule(database, number, content="y"),
        lambda number: cancel_schedule(database, number),
        lambda number: run_schedule(database, number),
    ]
    for change in changes:
        with pytest.raises(NotFoundError, match=f"schedule {number} is cancelled"):
            await change(number)
        with pytest.raises(NotFoundError, match=f"there is no schedule {number + 1}"):
            await change(number + 1)
    with pytest.raises(BadDataError, match="empty"):
        await add_schedule(database, " \n", plan_every("1h", SATURDAY))


async def test_a_run_on_request_comes_at_once_and_moves_nothing(database: Database) -> None:
    number = await add_schedule(database, "x", plan_every("1h", SATURDAY))
    before, _ = await get_schedule(database, number)
    message = await run_schedule(database, number)
    await run_schedule(database, number)
    after, runs = await get_schedule(database, number)
    assert after == before
    assert [(run.outcome, run.requested) for run in runs] == [("fired", True)] * 2
    assert runs[1].message_id == message
    assert await rows(database, ASKED) == [("x", "waiting")] * 2


async def test_old_runs_are_deleted_but_for_the_last(database: Database) -> None:
    number = await add_schedule(database, "x", plan_every("1h", SATURDAY))
    for _ in range(3):
        await run_schedule(database, number)
    old = "UPDATE assistant.schedule_runs SET at = at - interval '31 days'"
    await rows(database, old)
    await retention.prune(database)
    assert await rows(database, "SELECT count(*) FROM assistant.schedule_runs") == [1]


async def test_reminders_of_an_older_schema_are_done_or_still_to_come(empty_dsn: str) -> None:
    database = Database(empty_dsn)
    for step in list(list_migrations())[:2]:
        await rows(database, step.script)
    await rows(
        database,
        "INSERT INTO assistant.schedules (conversation, content, due_at, fired_at) "
        "VALUES ('main', 'old', now(), now()), ('main', 'new', now(), NULL)",
    )
    await migrate(database)
    assert [s.content for s in await list_schedules(database)] == ["new"]
    old = await rows(database, "SELECT state, action FROM assistant.schedules ORDER BY id")
    assert old == [("done", "remind"), ("active", "remind")]
    await database.close()
