"""No due time of a schedule is ever fired twice, whatever the schedules, hosts and accidents."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from random import Random
from zoneinfo import ZoneInfo

import pytest

from assistant_cli.errors import LeaseLostError
from assistant_cli.store import firing, heartbeat, leases, ticks
from assistant_cli.store.database import Database
from assistant_cli.store.leases import Lease
from assistant_cli.store.schedules import CatchUp, add_schedule
from assistant_cli.timing import Timing, plan_at, plan_cron, plan_every

from .hosting import rows
from .test_schedules import BERLIN, HOUR, MINUTE, RUNS, SAID, SATURDAY, TURNS
from .test_timing import wall

NEW_YORK = "America/New_York"


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
        async with self.database.transaction() as connection:
            await leases.renew(connection, Lease(("heartbeat",), self.token))
        while (due := await firing.next_due(self.database)) and due <= now:
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
