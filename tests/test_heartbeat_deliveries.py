"""What the heartbeat delivers: reminders when they are due, and nothing twice."""

from __future__ import annotations

from datetime import timedelta

import pytest

from assistant_cli.store import heartbeat, inbox, leases, ticks
from assistant_cli.store.database import Database
from assistant_cli.store.leases import Lease

from .driven_clock import DrivenClock
from .hosting import ask, hosting, rows, until, until_equal
from .test_heartbeat import HALF_HOUR, ONLY_HEARTBEAT, SAID, TICKS, due, sleeping, ticked

DELIVERIES = "SELECT outcome FROM assistant.turns WHERE trigger = 'reminder' ORDER BY id"


async def test_off_means_never_and_reminders_come_all_the_same(
    database: Database, clock: DrivenClock
) -> None:
    async with hosting(database, clock=clock, agents=("heartbeat",), heartbeat=None):
        await due(database, clock, "tea", minutes=10)
        await sleeping(clock)
        assert await database.kv.get("heartbeat_next_tick_at") == "off"
        clock.move(minutes=10)
        await until_equal(database, SAID, [("main", "Reminder: tea")])
        clock.move(days=10)
    assert await rows(database, TICKS) == []
    assert await rows(database, DELIVERIES) == ["done"]


async def test_reminders_come_when_due_between_ticks_and_once_each(
    database: Database, clock: DrivenClock
) -> None:
    async with hosting(database, clock=clock, **ONLY_HEARTBEAT):
        await ticked(database, clock, ["skipped"])
        await due(database, clock, "second", minutes=6)
        await due(database, clock, "first", minutes=5)
        await due(database, clock, "third", minutes=20)

        async def known() -> bool:
            return clock.next_waking() == clock.now() + timedelta(minutes=5)

        await until(known, "the news of the reminder")
        clock.move(minutes=7)
        said = [("main", "Reminder: first"), ("main", "Reminder: second")]
        await until_equal(database, SAID, said)
        await sleeping(clock)
        clock.move(minutes=1)
    async with hosting(database, clock=clock, **ONLY_HEARTBEAT):
        await sleeping(clock)
        clock.move(minutes=12)
        await until_equal(database, SAID, [*said, ("main", "Reminder: third")])
    linked = "SELECT count(*) FROM assistant.schedules WHERE message_id IS NULL OR fired_at IS NULL"
    assert await rows(database, linked) == [0]
    assert await rows(database, TICKS) == ["skipped"]


async def test_a_reminder_set_in_a_message_is_delivered_in_its_conversation(
    database: Database, clock: DrivenClock
) -> None:
    async with hosting(database, clock=clock):
        await ask(database, "/remind 10m tea", "work")

        async def known() -> bool:
            return clock.next_waking() == clock.now() + timedelta(minutes=10)

        await until(known, "the news of the reminder")
        clock.move(minutes=10)
        await until_equal(database, SAID, [("work", "Reminder: tea")])


async def test_many_reminders_due_at_once_are_all_delivered(
    database: Database, clock: DrivenClock
) -> None:
    await rows(
        database,
        "INSERT INTO assistant.schedules (conversation, content, due_at) "
        "SELECT 'main', n::text, now() - interval '1 day' + n * interval '1 s' "
        "FROM generate_series(1, 250) AS n",
    )
    async with hosting(database, clock=clock):
        await until_equal(database, SAID, [("main", f"Reminder: {n}") for n in range(1, 251)])
    assert await rows(database, DELIVERIES) == ["done"] * 3


@pytest.fixture
async def lease(database: Database) -> Lease:
    return await leases.acquire(database, ["heartbeat"])


async def test_a_result_kept_twice_is_said_once(
    database: Database, lease: Lease, clock: DrivenClock
) -> None:
    now = clock.now()
    tick = await ticks.begin(database, "heartbeat", lease.token, "m", now, now + HALF_HOUR)
    for _ in range(3):
        await ticks.finish(database, lease.token, tick, "a thought", ())
    await due(database, clock, "tea", minutes=-1)
    delivery = await heartbeat.begin_delivery(database, lease.token)
    for _ in range(3):
        await heartbeat.deliver(database, lease.token, delivery, now)
    assert await rows(database, SAID) == [("main", "a thought"), ("main", "Reminder: tea")]
    assert await rows(database, "SELECT outcome FROM assistant.turns") == ["done", "done"]


async def test_a_tick_of_a_process_that_died_is_closed_and_not_repeated(
    database: Database, lease: Lease, clock: DrivenClock
) -> None:
    now = clock.now()
    await ticks.begin(database, "heartbeat", lease.token, "m", now, now + HALF_HOUR)
    await due(database, clock, "tea", minutes=-1)
    await heartbeat.begin_delivery(database, lease.token)
    await rows(database, "UPDATE assistant.leases SET expires_at = now()")
    async with hosting(database, clock=clock, **ONLY_HEARTBEAT):
        await until_equal(database, SAID, [("main", "Reminder: tea")])
        await sleeping(clock)
    assert await rows(database, TICKS) == ["interrupted"]
    assert await rows(database, DELIVERIES) == ["interrupted", "done"]


async def test_a_report_kept_twice_marks_nothing_as_reported_that_was_not(
    database: Database, lease: Lease, clock: DrivenClock
) -> None:
    for number in range(150):
        await inbox.put_message(database, str(number), conversation="main")
    await rows(database, "UPDATE assistant.messages SET state = 'failed', error = 'no luck'")
    now = clock.now()
    tick = await ticks.begin(database, "heartbeat", lease.token, "m", now, now + HALF_HOUR)
    for _ in range(2):
        await ticks.finish(database, lease.token, tick, None, (), report_after=HALF_HOUR)
    reported = "SELECT count(*) FROM assistant.messages WHERE reported_at IS NOT NULL"
    assert await rows(database, reported) == [100]
    said = "SELECT content FROM assistant.messages WHERE role = 'assistant'"
    (report,) = await rows(database, said)
    assert report.count("\n") == 99
