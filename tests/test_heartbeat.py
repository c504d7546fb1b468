"""The heartbeat: anchored to its last tick, and silent without a reason."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from assistant_cli.store import inbox, leases, ticks
from assistant_cli.store.database import Database

from .conftest import CommandLine
from .driven_clock import DrivenClock
from .hosting import Hold, hosting, rows, until, until_equal, worker_of

HALF_HOUR = timedelta(minutes=30)
ONLY_HEARTBEAT: dict[str, Any] = {"agents": ("heartbeat",), "heartbeat": HALF_HOUR}
TICKS = (
    "SELECT outcome FROM assistant.turns WHERE agent = 'heartbeat' AND trigger = 'timer' "
    "AND outcome <> 'running' ORDER BY id"
)
SAID = (
    "SELECT conversation, content FROM assistant.messages "
    "WHERE source = 'heartbeat' ORDER BY position"
)
ENTRY = "SELECT value -> 'heartbeat' FROM kv WHERE key = 'status_board'"
IDLE = {"status": "idle", "detail": None}


NEXT_TICK = "SELECT value #>> '{}' FROM kv WHERE key = 'heartbeat_next_tick_at'"


def iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


async def ticked(database: Database, clock: DrivenClock, outcomes: Sequence[str]) -> None:
    """Wait until there were these ticks and the heartbeat waits for the next."""
    await until_equal(database, TICKS, list(outcomes))
    await sleeping(clock)


async def sleeping(clock: DrivenClock) -> None:
    async def waits() -> bool:
        return (clock.next_waking() or clock.now()) > clock.now()

    await until(waits, "the sleep of the heartbeat")


async def due(database: Database, clock: DrivenClock, text: str, **offset: float) -> None:
    await rows(
        database,
        "INSERT INTO assistant.schedules (conversation, content, due_at) VALUES ('main', %s, %s)",
        text,
        clock.now() + timedelta(**offset),
    )
    await rows(database, "SELECT pg_notify('assistant_messages', '')")


async def test_the_first_tick_is_at_once_and_then_one_an_interval(
    database: Database, clock: DrivenClock
) -> None:
    start = clock.now()
    async with hosting(database, clock=clock, **ONLY_HEARTBEAT):
        await ticked(database, clock, ["skipped"])
        assert await database.kv.get("heartbeat_last_tick_at") == iso(start)
        assert await database.kv.get("heartbeat_next_tick_at") == iso(start + HALF_HOUR)
        clock.move(minutes=29, seconds=59)
        await sleeping(clock)
        assert await rows(database, TICKS) == ["skipped"]
        clock.move(seconds=1)
        await ticked(database, clock, ["skipped"] * 2)
        assert await database.kv.get("heartbeat_last_tick_at") == iso(start + HALF_HOUR)
        await until_equal(database, ENTRY, [IDLE])


async def test_a_restart_neither_delays_nor_repeats_a_tick(
    database: Database, clock: DrivenClock
) -> None:
    start = clock.now()
    async with hosting(database, clock=clock, **ONLY_HEARTBEAT):
        await ticked(database, clock, ["skipped"])
    for _ in range(3):
        clock.move(minutes=9)
        async with hosting(database, clock=clock, **ONLY_HEARTBEAT):
            await sleeping(clock)
            assert clock.next_waking() == datetime.fromisoformat(iso(start)) + HALF_HOUR
    assert await rows(database, TICKS) == ["skipped"]


async def test_many_intervals_overdue_are_one_tick(database: Database, clock: DrivenClock) -> None:
    await database.kv.set("heartbeat_last_tick_at", iso(clock.now() - timedelta(days=3)))
    async with hosting(database, clock=clock, **ONLY_HEARTBEAT):
        await ticked(database, clock, ["skipped"])
        assert clock.next_waking() == clock.now() + HALF_HOUR


async def test_an_anchor_that_is_no_time_is_no_anchor(
    database: Database, clock: DrivenClock
) -> None:
    early = "0001-01-01T00:00:00+14:00"
    anchors = ["soon", 17, None, {"at": 1}, "2026-01-01", "", early, "x" * 9_000]
    for count, anchor in enumerate(anchors, 1):
        await database.kv.set("heartbeat_last_tick_at", anchor)
        async with hosting(database, clock=clock, **ONLY_HEARTBEAT):
            await ticked(database, clock, ["skipped"] * count)
        assert await database.kv.get("heartbeat_last_tick_at") == iso(clock.now())


async def test_an_anchor_a_little_ahead_is_a_tick_an_interval_from_now(
    database: Database, clock: DrivenClock
) -> None:
    await database.kv.set("heartbeat_last_tick_at", iso(clock.now() + timedelta(seconds=90)))
    async with hosting(database, clock=clock, **ONLY_HEARTBEAT):
        await sleeping(clock)
        assert clock.next_waking() == clock.now() + HALF_HOUR
    assert await rows(database, TICKS) == []


async def test_an_anchor_far_ahead_does_not_stop_the_heartbeat(
    database: Database, clock: DrivenClock
) -> None:
    await database.kv.set("heartbeat_last_tick_at", "9999-12-31T23:59:59Z")
    async with hosting(database, clock=clock, **ONLY_HEARTBEAT):
        await ticked(database, clock, ["skipped"])
    assert await database.kv.get("heartbeat_last_tick_at") == iso(clock.now())


async def test_a_clock_that_is_set_back_does_not_put_off_the_next_tick(
    database: Database, clock: DrivenClock
) -> None:
    async with hosting(database, clock=clock, **ONLY_HEARTBEAT):
        await ticked(database, clock, ["skipped"])
        clock.move(days=-1)
        # As after half a minute at the latest.
        await due(database, clock, "wake up", minutes=90)
        await until_equal(database, NEXT_TICK, [iso(clock.now() + HALF_HOUR)])
        await sleeping(clock)
        assert clock.next_waking() == clock.now() + HALF_HOUR


async def test_a_tick_while_a_message_is_answered_is_skipped(
    database: Database, clock: DrivenClock, hold: Hold
) -> None:
    await database.kv.set("heartbeat_last_tick_at", iso(clock.now()))
    hold.close()
    async with hosting(database, hold.model, clock, heartbeat=HALF_HOUR):
        await sleeping(clock)
        await inbox.put_message(database, "hello", conversation="main")
        working = "SELECT state FROM assistant.messages WHERE role = 'user'"
        await until_equal(database, working, ["working"])
        clock.move(minutes=30)
        await ticked(database, clock, ["skipped"])
        assert clock.next_waking() == clock.now() + HALF_HOUR
        await until_equal(database, ENTRY, [IDLE])
        hold.open()
        await until_equal(database, working, ["answered"])
    assert hold.asked == ["hello"]


async def test_whether_a_message_is_answered_is_known_across_processes(
    database: Database, clock: DrivenClock, hold: Hold
) -> None:
    elsewhere = await leases.acquire(database, ["conversation"])
    await inbox.put_message(database, "hello", conversation="main")
    worker = worker_of(database, elsewhere)
    [turn] = await worker.claim("offline")
    async with hosting(database, clock=clock, **ONLY_HEARTBEAT):
        await ticked(database, clock, ["skipped"])
        await worker.keep(turn, [])
        clock.move(minutes=30)
        await ticked(database, clock, ["skipped", "silent"])


async def test_a_turn_of_a_dead_process_does_not_stop_the_heartbeat(
    database: Database, clock: DrivenClock
) -> None:
    elsewhere = await leases.acquire(database, ["conversation"])
    await inbox.put_message(database, "hello", conversation="main")
    await worker_of(database, elsewhere).claim("offline")
    await rows(database, "UPDATE assistant.leases SET expires_at = now()")
    async with hosting(database, clock=clock, **ONLY_HEARTBEAT):
        await ticked(database, clock, ["silent"])


async def test_the_model_is_asked_only_if_something_was_said_since_the_last_tick(
    database: Database, clock: DrivenClock, tmp_path: Path
) -> None:
    model = f"command:cat > {tmp_path}/prompt; echo x >> {tmp_path}/asked; echo do your taxes"
    asked = tmp_path / "asked"
    await inbox.put_message(database, "hello", conversation="work")
    async with hosting(database, model, clock, **ONLY_HEARTBEAT):
        await ticked(database, clock, ["done"])
        assert await rows(database, SAID) == [("main", "do your taxes")]
        prompt = (tmp_path / "prompt").read_text()
        assert "Messages from the user since your last heartbeat: 1." in prompt
        assert "heartbeat: running — reflecting" in prompt
        clock.move(minutes=30)
        await ticked(database, clock, ["done", "skipped"])
        assert asked.read_text() == "x\n"
    async with hosting(database, model, clock, **ONLY_HEARTBEAT):
        await inbox.put_message(database, "again", conversation="work")
        await sleeping(clock)
        clock.move(minutes=30)
        await ticked(database, clock, ["done", "skipped", "done"])
    assert asked.read_text() == "x\nx\n"


@pytest.mark.parametrize("answer", ["[no action needed]", " [No Action NEEDED]\n\n", "", "\n \n"])
async def test_a_model_with_nothing_to_say_is_silent(
    database: Database, clock: DrivenClock, answer: str
) -> None:
    await inbox.put_message(database, "hello", conversation="main")
    async with hosting(database, f"command:printf '%s' '{answer}'", clock, **ONLY_HEARTBEAT):
        await ticked(database, clock, ["silent"])
    assert await rows(database, SAID) == []


async def test_a_failing_model_is_a_failed_turn_and_the_next_tick_comes_later(
    database: Database, clock: DrivenClock, hold: Hold
) -> None:
    hold.break_down()
    await inbox.put_message(database, "hello", conversation="main")
    async with hosting(database, hold.model, clock, **ONLY_HEARTBEAT):
        await ticked(database, clock, ["failed"])
        (turn,) = await rows(database, "SELECT id FROM assistant.turns")
        reason = "the model's command exited with 3: kaput"
        failed = {"status": "failed", "detail": f"turn {turn} failed: {reason}"}
        await until_equal(database, ENTRY, [failed])
        assert clock.next_waking() == clock.now() + HALF_HOUR
        hold.mend()
        clock.move(minutes=30)
        await ticked(database, clock, ["failed", "done"])
        await until_equal(database, ENTRY, [IDLE])
    assert len(hold.asked) == 2
    errors = await rows(database, "SELECT error FROM assistant.turns ORDER BY id")
    assert errors == ["the model's command exited with 3: kaput", None]


async def test_a_model_that_takes_too_long_is_a_tick_that_timed_out(
    database: Database, clock: DrivenClock, hold: Hold
) -> None:
    hold.close()
    await inbox.put_message(database, "hello", conversation="main")
    limit = timedelta(seconds=0.3)
    async with hosting(database, hold.model, clock, turn_timeout=limit, **ONLY_HEARTBEAT):
        await ticked(database, clock, ["timed_out"])
        (turn,) = await rows(database, "SELECT id FROM assistant.turns")
        detail = f"turn {turn} timed out: no result within the deadline of 300ms"
        await until_equal(database, ENTRY, [{"status": "failed", "detail": detail}])


async def test_messages_that_failed_or_wait_for_long_are_reported_once(
    database: Database, clock: DrivenClock
) -> None:
    failed = await inbox.put_message(database, "a  long\n" + "x" * 80, conversation="work")
    await inbox.put_message(database, "old", conversation="main")
    await rows(
        database,
        "UPDATE assistant.messages SET created_at = created_at - interval '16 min', "
        "state = CASE WHEN id = %s THEN 'failed' ELSE 'waiting' END, error = 'no luck'",
        failed,
    )
    await inbox.put_message(database, "new", conversation="main")
    async with hosting(database, clock=clock, **ONLY_HEARTBEAT):
        await ticked(database, clock, ["done"])
        clock.move(minutes=30)
        await ticked(database, clock, ["done", "skipped"])
    (work, main) = await rows(database, SAID)
    assert work[0] == "work"
    assert work[1].endswith(f", 'a long {'x' * 52}…', failed: no luck")
    assert main[0] == "main"
    assert main[1].endswith(", 'old', is unanswered")


@pytest.mark.parametrize("value", ["0", "abc", "-1", "10ms"])
def test_a_bad_interval_is_a_usage_error_and_in_the_environment_a_wrong_configuration(
    environment: dict[str, str], value: str
) -> None:
    done = CommandLine(environment)("run", "--heartbeat", value)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("assistant: --heartbeat: ")
    # No unit that is started again after failures tries this again.
    done = CommandLine({**environment, "ASSISTANT_HEARTBEAT": value})("run")
    assert (done.code, done.out) == (78, "")
    assert done.err.startswith("assistant: ASSISTANT_HEARTBEAT: ")


async def test_a_tick_that_was_begun_and_given_up_is_closed_as_its_agent_is_given_back(
    database: Database,
) -> None:
    lease = await leases.acquire(database, ["heartbeat"])
    now = datetime.now(UTC)
    await ticks.begin(database, "heartbeat", lease.token, "offline", now, now + HALF_HOUR)
    await leases.release(database, lease, settle=True)
    closed = "SELECT outcome, error, ended_at IS NOT NULL FROM assistant.turns"
    interrupted = ("interrupted", "the process that ran it ended", True)
    assert await rows(database, closed) == [interrupted]
