"""Schedules: on time, by the clock of their zone, and no due time ever fired twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest

from assistant_cli.errors import (
    BadDataError,
    DatabaseUnreachableError,
    LeaseLostError,
    NotFoundError,
)
from assistant_cli.store import heartbeat, leases, retention, ticks
from assistant_cli.store.database import Database
from assistant_cli.store.firing import run_schedule
from assistant_cli.store.migrations import list_migrations, migrate
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
NEW_YORK = "America/New_York"

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


def wall(zone: str, text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)


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


async def test_a_due_time_that_comes_again_is_not_fired_again(database: Database) -> None:
    await add_schedule(database, "x", plan_every("1h", SATURDAY), action="say")
    lease = await leases.acquire(database, ["heartbeat"])
    now = SATURDAY + HOUR
    for _ in range(3):
        turn = await heartbeat.begin_delivery(database, lease.token)
        await heartbeat.deliver(database, lease.token, turn, now)
        await rows(database, "UPDATE assistant.schedules SET due_at = %s", now)
    assert await rows(database, SAID) == [("main", "x")]
    turns = [("schedule", "done"), ("schedule", "silent"), ("schedule", "silent")]
    assert await rows(database, TURNS) == turns


async def test_a_process_that_lost_its_lease_fires_nothing(database: Database) -> None:
    await add_schedule(database, "x", plan_every("1h", SATURDAY), action="say")
    lease = await leases.acquire(database, ["heartbeat"])
    turn = await heartbeat.begin_delivery(database, lease.token)
    await rows(database, "UPDATE assistant.leases SET expires_at = now()")
    await leases.acquire(database, ["heartbeat"])
    with pytest.raises(LeaseLostError):
        await heartbeat.deliver(database, lease.token, turn, SATURDAY + HOUR)
    assert await rows(database, SAID) == await rows(database, RUNS) == []


# A property: whatever the schedules, hosts and accidents, each fires as its policy says.

QUARTER = timedelta(minutes=15)
WINDOW = timedelta(hours=40)
OUTAGE = timedelta(hours=6)


@dataclass
class Planned:
    """A schedule with all the times it is due at, found without the code under test."""

    timing: Timing
    catch_up: CatchUp
    times: list[datetime]
    number: int = 0


@dataclass
class Hosts:
    """Two processes that take the heartbeat from each other, and look at what is due."""

    database: Database
    random: Random
    token: int = 0
    stale: list[int] = field(default_factory=list)

    async def take_over(self) -> None:
        await rows(self.database, "UPDATE assistant.leases SET expires_at = now()")
        lease = await leases.acquire(self.database, ["heartbeat"])
        self.stale, self.token = [self.token], lease.token
        await ticks.recover(self.database, "heartbeat", self.token)

    async def look(self, now: datetime) -> None:
        """Fire what is due, with accidents: a death before, a stale host, a doubtful commit."""
        while (due := await heartbeat.next_due(self.database)) and due <= now:
            turn = await heartbeat.begin_delivery(self.database, self.token)
            accident = self.random.random()
            if accident < 0.1:
                await self.take_over()
                with pytest.raises(LeaseLostError):
                    await heartbeat.deliver(self.database, self.stale[0], turn, now)
                continue
            await heartbeat.deliver(self.database, self.token, turn, now)
            if accident < 0.2:
                await heartbeat.deliver(self.database, self.token, turn, now)


def instants(zone: ZoneInfo, naive: datetime) -> datetime:
    """When the zone's clock first shows a time, else when the gap around it ends."""
    while True:
        found = [
            moment
            for hours in range(-3, 6)
            if (moment := naive.replace(tzinfo=UTC) + timedelta(hours=hours))
            .astimezone(zone)
            .replace(tzinfo=None)
            == naive
        ]
        if found:
            return min(found)
        naive += MINUTE


def cron_times(zone: ZoneInfo, start: datetime, hours: list[int], minute: int) -> set[datetime]:
    """When a line with those hours is due."""
    first = start.astimezone(zone).date() - timedelta(days=1)
    days: Iterator[date] = (first + timedelta(days=n) for n in range(5))
    walls = [datetime(day.year, day.month, day.day, h, minute) for day in days for h in hours]  # noqa: DTZ001
    return {instants(zone, naive) for naive in walls}


def planned(random: Random, zone: str, start: datetime) -> Planned:
    """A schedule at random, all of whose times are at a quarter of an hour."""
    where = ZoneInfo(zone)
    end = start + WINDOW
    minute = random.choice([0, 15, 30, 45])
    match random.choice(["at", "every", "fixed", "fixed", "hourly"]):
        case "at":
            due = start + QUARTER * random.randint(1, 159)
            timing = plan_at(due.isoformat(), zone, start)
            times = {due}
        case "every":
            quarters = random.randint(3, 40)
            timing = plan_every(f"{quarters * 15}m", start)
            times = {start + QUARTER * quarters * n for n in range(1, 60)}
        case "fixed":
            hours = sorted([*random.sample(range(24), random.randint(1, 4)), random.randint(1, 3)])
            line = f"{minute} {','.join(map(str, hours))} * * *"
            timing = plan_cron(line, zone, start)
            times = cron_times(where, start, hours, minute)
        case _:
            timing = plan_cron(f"{minute} * * * *", zone, start)
            times = {start + QUARTER * n for n in range(1, 400)}
            times = {moment for moment in times if moment.astimezone(where).minute == minute}
    ordered = sorted(moment for moment in times if start < moment <= end)
    policy: CatchUp = random.choice(["once", "skip"])
    return Planned(timing, policy, ordered)


def expected(plan: Planned, down: datetime, up: datetime) -> list[tuple[datetime, str, int]]:
    """The runs that the policy asks for, with nobody there after `down` and before `up`."""
    missed = [moment for moment in plan.times if down < moment < up]
    runs = [(moment, "fired", 0) for moment in plan.times if moment <= down or moment > up]
    if missed:
        outcome = "fired" if plan.catch_up == "once" else "skipped"
        runs.append((missed[0], outcome, len(missed)))
    if up in plan.times and not (missed and plan.catch_up == "once"):
        runs.append((up, "fired", 0))
    return sorted(runs)


@pytest.mark.parametrize(
    ("zone", "night"),
    [
        (BERLIN, "2026-03-28 18:00"),
        (BERLIN, "2026-10-24 18:00"),
        (NEW_YORK, "2026-03-07 18:00"),
        (NEW_YORK, "2026-10-31 18:00"),
    ],
)
async def test_each_of_many_fires_as_its_policy_says_and_never_twice(
    database: Database, zone: str, night: str
) -> None:
    random = Random(f"{zone} {night}")
    start = wall(zone, night)
    plans = [planned(random, zone, start) for _ in range(250)]
    for plan in plans:
        plan.number = await add_schedule(
            database, "x", plan.timing, action=random.choice(["ask", "say"]), catch_up=plan.catch_up
        )
    down = start + QUARTER * random.randint(20, 36)
    hosts = Hosts(database, random)
    await hosts.take_over()
    moment = start
    while moment < start + WINDOW:
        moment = moment + OUTAGE if moment == down else moment + QUARTER
        if random.random() < 0.1:
            await hosts.take_over()
        await hosts.look(moment + timedelta(seconds=random.randint(0, 59)))
    query = "SELECT schedule_id, due_at, outcome, missed FROM assistant.schedule_runs ORDER BY 1, 2"
    found: dict[int, list[tuple[datetime, str, int]]] = {plan.number: [] for plan in plans}
    for number, *run in await rows(database, query):
        found[number].append((run[0], run[1], run[2]))
    for plan in plans:
        assert found[plan.number] == expected(plan, down, down + OUTAGE), plan
    fired = {
        f"{number}/{due_at.astimezone(UTC).isoformat()}"
        for number, runs in found.items()
        for due_at, outcome, _ in runs
        if outcome == "fired"
    }
    sent = await rows(database, "SELECT external_id FROM assistant.messages")
    assert len(sent) == len(fired)
    assert set(sent) == fired


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
