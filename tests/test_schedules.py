"""Schedules: on time, by the clock of their zone, whatever is missed, fails or dies meanwhile."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from assistant_cli.errors import DatabaseUnreachableError
from assistant_cli.store import heartbeat, leases
from assistant_cli.store.database import Database
from assistant_cli.store.schedules import (
    CatchUp,
    Schedule,
    add_schedule,
    cancel_schedule,
    edit_schedule,
    get_schedule,
    list_schedules,
)
from assistant_cli.timing import Timing, plan_at, plan_cron, plan_every

from .driven_clock import DrivenClock
from .hosting import Hold, hosting, rows, until, until_equal

BERLIN = "Europe/Berlin"

# A Saturday evening in Berlin, hours before its clocks go forward.
SATURDAY = datetime(2026, 3, 28, 21, 30, 20, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
RUNS = (
    "SELECT due_at, outcome, missed FROM assistant.schedule_runs "
    "WHERE NOT requested ORDER BY schedule_id, due_at"
)
ASKED = "SELECT content, state FROM assistant.messages WHERE source = 'schedule' ORDER BY position"
SAID = (
    "SELECT conversation, content FROM assistant.messages "
    "WHERE source = 'heartbeat' ORDER BY position"
)
TURNS = "SELECT trigger, outcome FROM assistant.turns WHERE agent = 'heartbeat' ORDER BY id"
BREAK = """
CREATE FUNCTION assistant.break_down() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'kaput';
END
$$;
CREATE TRIGGER break_down BEFORE INSERT ON assistant.messages
FOR EACH ROW WHEN (NEW.content = 'poison') EXECUTE FUNCTION assistant.break_down();
"""


@pytest.fixture
def clock() -> DrivenClock:
    return DrivenClock(SATURDAY)


async def sleeping(clock: DrivenClock, until_then: datetime) -> None:
    """Wait until the heartbeat sleeps until a time."""

    async def waits() -> bool:
        return clock.next_waking() == until_then

    await until(waits, f"the sleep of the heartbeat until {until_then}")


async def test_a_text_comes_to_the_assistant_at_its_time_and_is_answered(
    database: Database, clock: DrivenClock
) -> None:
    due_at = SATURDAY + 2 * HOUR
    async with hosting(database, "command:tr a-z A-Z", clock):
        number = await add_schedule(
            database, "what is on?", plan_at("2h", BERLIN, SATURDAY), conversation="work"
        )
        await sleeping(clock, due_at)
        assert await rows(database, RUNS) == []
        clock.move(hours=2)
        await until_equal(database, ASKED, [("what is on?", "answered")])
        replies = "SELECT conversation, content FROM assistant.messages WHERE role = 'assistant'"
        assert await rows(database, replies) == [("work", "WHAT IS ON?")]
    assert await rows(database, RUNS) == [(due_at, "fired", 0)]
    named = "SELECT external_id FROM assistant.messages WHERE source = 'schedule'"
    assert await rows(database, named) == [f"{number}/{due_at.isoformat()}"]
    schedule, (run,) = await get_schedule(database, number)
    assert (schedule.state, run.message_id is not None) == ("done", True)
    assert await rows(database, TURNS) == [("schedule", "done")]


async def test_a_text_is_said_as_it_is_without_any_heartbeat(
    database: Database, clock: DrivenClock
) -> None:
    async with hosting(database, clock=clock, agents=("heartbeat",), heartbeat=None):
        timing = plan_every("1h", SATURDAY)
        await add_schedule(database, "drink", timing, action="say", conversation="work")
        for count in (1, 2, 3):
            await sleeping(clock, SATURDAY + count * HOUR)
            clock.move(hours=1)
            await until_equal(database, SAID, [("work", "drink")] * count)


async def test_every_so_often_is_anchored_to_the_first_time_not_to_the_last_firing(
    database: Database, clock: DrivenClock
) -> None:
    await add_schedule(database, "x", plan_every("1h", SATURDAY), action="say")
    async with hosting(database, clock=clock):
        for count in (1, 2, 3):
            await sleeping(clock, SATURDAY + count * HOUR)
            clock.move(hours=1, seconds=20)
        await sleeping(clock, SATURDAY + 4 * HOUR)
    runs = [(SATURDAY + count * HOUR, "fired", 0) for count in (1, 2, 3)]
    assert await rows(database, RUNS) == runs


async def test_a_schedule_between_ticks_neither_moves_a_tick_nor_counts_as_news(
    database: Database, clock: DrivenClock, tmp_path: Path
) -> None:
    model = f"command:cat >> {tmp_path}/asked; echo do your taxes"
    await add_schedule(database, "tea", plan_at("10m", BERLIN, SATURDAY))
    async with hosting(
        database, model, clock, agents=("heartbeat",), heartbeat=timedelta(minutes=30)
    ):
        await sleeping(clock, SATURDAY + 10 * MINUTE)
        clock.move(minutes=10)
        await until_equal(database, ASKED, [("tea", "waiting")])
        await sleeping(clock, SATURDAY + 30 * MINUTE)
        clock.move(minutes=30)
        ticks = [("timer", "skipped"), ("schedule", "done"), ("timer", "skipped")]
        await until_equal(database, TURNS, ticks)
    assert not (tmp_path / "asked").exists()


@pytest.mark.parametrize(
    ("catch_up", "runs"),
    [
        ("once", [(1, "fired", 6), (7, "fired", 0)]),
        ("skip", [(1, "skipped", 6), (7, "fired", 0)]),
    ],
)
async def test_times_that_nobody_ran_at_are_made_up_for_once_or_skipped(
    database: Database, clock: DrivenClock, catch_up: CatchUp, runs: list[tuple[int, str, int]]
) -> None:
    timing = plan_every("1h", SATURDAY)
    await add_schedule(database, "x", timing, action="say", catch_up=catch_up)
    clock.move(hours=6, minutes=10)
    async with hosting(database, clock=clock):
        await sleeping(clock, SATURDAY + 7 * HOUR)
        clock.move(minutes=50)
        await sleeping(clock, SATURDAY + 8 * HOUR)
    expected = [(SATURDAY + n * HOUR, outcome, missed) for n, outcome, missed in runs]
    assert await rows(database, RUNS) == expected
    fired = [run for run in runs if run[1] == "fired"]
    assert await rows(database, SAID) == [("main", "x")] * len(fired)


async def test_a_single_time_that_was_missed_and_is_skipped_is_done(
    database: Database, clock: DrivenClock
) -> None:
    timing = plan_at("1h", BERLIN, SATURDAY)
    number = await add_schedule(database, "x", timing, action="say", catch_up="skip")
    clock.move(hours=2)
    async with hosting(database, clock=clock):
        await until_equal(database, RUNS, [(SATURDAY + HOUR, "skipped", 1)])
    schedule, _ = await get_schedule(database, number)
    assert (schedule.state, schedule.fired_at) == ("done", None)
    assert await rows(database, SAID) == []


async def test_what_came_due_while_the_heartbeat_thought_is_late_and_not_missed(
    database: Database, clock: DrivenClock, tmp_path: Path
) -> None:
    hold = Hold(tmp_path)
    hold.close()
    await rows(
        database,
        "INSERT INTO assistant.messages (id, conversation, role, content, source, state) "
        "VALUES (gen_random_uuid(), 'main', 'user', 'hello', 'cli', 'answered')",
    )
    timing = plan_at("3m", BERLIN, SATURDAY)
    await add_schedule(database, "x", timing, action="say", catch_up="skip")
    async with hosting(
        database, hold.model, clock, agents=("heartbeat",), heartbeat=timedelta(days=1)
    ):

        async def asked() -> object:
            return hold.asked

        await until(asked, "the question to the model")
        clock.move(minutes=9)
        hold.open()
        await until_equal(database, RUNS, [(SATURDAY + 3 * MINUTE, "fired", 0)])


async def test_a_firing_that_fails_is_tried_again_ever_later_and_holds_up_no_other(
    database: Database, clock: DrivenClock
) -> None:
    due_at = SATURDAY + HOUR
    timing = plan_at("1h", BERLIN, SATURDAY)
    await rows(database, BREAK)
    number = await add_schedule(database, "poison", timing, catch_up="skip")
    await add_schedule(database, "tea", timing, action="say")
    async with hosting(database, clock=clock, agents=("heartbeat",)):
        clock.move(hours=1)
        await until_equal(database, SAID, [("main", "tea")])
        for attempt in range(10):
            delay = timedelta(seconds=min(5 * 3**attempt, 3600))
            await sleeping(clock, clock.now() + delay)
            schedule, (run,) = await get_schedule(database, number)
            assert (run.outcome, run.attempts, run.due_at) == ("failed", attempt + 1, due_at)
            assert schedule.error == run.error == "the database says: kaput (SQLSTATE P0001)"
            clock.move(seconds=delay.total_seconds())
        await sleeping(clock, clock.now() + HOUR)
        await rows(database, "DROP TRIGGER break_down ON assistant.messages")
        clock.move(hours=1)
        await until_equal(database, ASKED, [("poison", "waiting")])
    schedule, (run,) = await get_schedule(database, number)
    assert (schedule.state, schedule.error, schedule.attempts) == ("done", None, 0)
    assert (run.outcome, run.attempts, run.error, run.missed) == ("fired", 12, None, 0)
    errors = await rows(database, "SELECT DISTINCT error FROM assistant.turns WHERE error <> ''")
    assert errors == [f"schedule {number}: the database says: kaput (SQLSTATE P0001)"]


FILL_QUEUE = (
    "INSERT INTO assistant.messages (id, conversation, role, content, source, state) "
    "SELECT gen_random_uuid(), 'main', 'user', 'x', %s, 'waiting' FROM generate_series(1, %s)"
)


async def test_whoever_fills_a_conversation_keeps_no_schedule_out(
    database: Database, clock: DrivenClock
) -> None:
    await rows(database, FILL_QUEUE, "psql", 1_000)
    await add_schedule(database, "taxes", plan_at("1h", BERLIN, SATURDAY))
    async with hosting(database, clock=clock, agents=("heartbeat",)):
        clock.move(hours=1)
        await until_equal(database, ASKED, [("taxes", "waiting")])


async def test_a_schedule_for_a_conversation_full_of_schedules_fires_once_there_is_room(
    database: Database, clock: DrivenClock, sql: psycopg.Connection[Any]
) -> None:
    # Without the triggers, which count what waits for each of them.
    sql.execute("SET session_replication_role = replica")
    sql.execute(FILL_QUEUE, ("schedule", 10_000))
    timing = plan_at("1h", BERLIN, SATURDAY)
    number = await add_schedule(database, "taxes", timing, catch_up="skip")
    await add_schedule(database, "tea", timing, action="remind")
    async with hosting(database, clock=clock, agents=("heartbeat",)):
        clock.move(hours=1)
        await until_equal(database, SAID, [("main", "Reminder: tea")])
        await sleeping(clock, clock.now() + timedelta(seconds=5))
        schedule, _ = await get_schedule(database, number)
        assert "10000 messages wait in this conversation" in (schedule.error or "")
        await rows(database, "DELETE FROM assistant.messages WHERE content = 'x'")
        clock.move(seconds=5)
        await until_equal(database, ASKED, [("taxes", "waiting")])


async def test_a_stored_line_that_cannot_be_understood_is_a_failure_like_any_other(
    database: Database, clock: DrivenClock
) -> None:
    number = await add_schedule(database, "x", plan_cron("0 * * * *", BERLIN, SATURDAY))
    await rows(database, "UPDATE assistant.schedules SET zone = 'Atlantis/City'")
    clock.move(hours=1)
    async with hosting(database, clock=clock):
        await sleeping(clock, clock.now() + timedelta(seconds=5))
        schedule, (run,) = await get_schedule(database, number)
        assert run.outcome == "failed"
        assert schedule.error is not None
        assert schedule.error.startswith("there is no time zone 'Atlantis/City'; ")
        detail = f"turn 1 failed: schedule {number}: {schedule.error}"
        shown = "SELECT value -> 'heartbeat' FROM kv WHERE key = 'status_board'"
        assert await rows(database, shown) == [{"status": "failed", "detail": detail}]


async def test_an_edit_counts_from_then_on_and_wakes_the_heartbeat(
    database: Database, clock: DrivenClock
) -> None:
    number = await add_schedule(database, "x", plan_every("1h", SATURDAY), action="say")
    async with hosting(database, clock=clock):
        await sleeping(clock, SATURDAY + HOUR)

        def sooner(schedule: Schedule) -> Timing:
            assert schedule.spec == "1h"
            return plan_every("10m", SATURDAY)

        await edit_schedule(database, number, content="y", catch_up="skip", retime=sooner)
        await sleeping(clock, SATURDAY + 10 * MINUTE)
        clock.move(minutes=10)
        await until_equal(database, SAID, [("main", "y")])
        await cancel_schedule(database, number)
        await until(lambda: _asleep(clock), "the sleep without an end")
        clock.move(days=1)
    schedule, _ = await get_schedule(database, number)
    assert (schedule.state, schedule.catch_up) == ("cancelled", "skip")
    assert await rows(database, SAID) == [("main", "y")]
    assert await list_schedules(database) == []
    assert await list_schedules(database, over=True, conversation="main") == [schedule]


async def _asleep(clock: DrivenClock) -> bool:
    return clock.next_waking() is None


async def test_a_process_that_dies_while_it_fires_leaves_nothing_half_done(
    database: Database, clock: DrivenClock
) -> None:
    await rows(
        database,
        "CREATE FUNCTION assistant.hang() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM pg_sleep(60); RETURN NEW; END $$;"
        "CREATE TRIGGER hang AFTER UPDATE ON assistant.schedules "
        "FOR EACH ROW EXECUTE FUNCTION assistant.hang()",
    )
    await add_schedule(database, "x", plan_every("1h", SATURDAY), action="say")
    lease = await leases.acquire(database, ["heartbeat"])
    now = SATURDAY + HOUR
    turn = await heartbeat.begin_delivery(database, lease.token)
    dying = asyncio.create_task(heartbeat.deliver(database, lease.token, turn, now))
    hanging = "FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
    await until(lambda: rows(database, f"SELECT 1 {hanging}"), "the moment before the commit")
    await rows(database, f"SELECT pg_terminate_backend(pid) {hanging}")
    with pytest.raises(DatabaseUnreachableError):
        await dying
    assert await rows(database, SAID) == await rows(database, RUNS) == []
    await rows(database, "DROP TRIGGER hang ON assistant.schedules")
    for _ in range(3):
        await heartbeat.deliver(database, lease.token, turn, now)
    assert await rows(database, SAID) == [("main", "x")]
    assert await rows(database, RUNS) == [(now, "fired", 0)]


async def test_the_agent_of_two_hosts_in_turn_fires_each_time_once(
    database: Database, clock: DrivenClock
) -> None:
    await add_schedule(database, "x", plan_every("1h", SATURDAY), action="say")
    elsewhere = Database(database.dsn)
    for count in range(1, 7):
        here = database if count % 2 else elsewhere
        async with hosting(here, clock=clock) as task:
            await sleeping(clock, SATURDAY + count * HOUR)
            clock.move(hours=1)
            await until_equal(database, SAID, [("main", "x")] * count)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
    await elsewhere.close()
    assert await rows(database, RUNS) == [
        (SATURDAY + count * HOUR, "fired", 0) for count in range(1, 7)
    ]
