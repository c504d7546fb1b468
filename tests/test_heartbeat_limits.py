"""A heartbeat that earns its keep: when it rests, why, and that it holds nobody up."""

from __future__ import annotations

import json
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import Any

import pytest

from assistant_cli.active_hours import ActiveHours, parse_active_hours, start_of_day
from assistant_cli.agents.heartbeat import Limits
from assistant_cli.store import inbox, ticks
from assistant_cli.store.board import StatusBoard
from assistant_cli.store.database import Database
from assistant_cli.store.status import get_snapshot

from .conftest import CommandLine, eventually
from .driven_clock import DrivenClock
from .hosting import Hold, ask, hosting, rows, until, until_equal
from .openai_server import OpenAIServer, fails, says, serving

HALF_HOUR = timedelta(minutes=30)
ONLY_HEARTBEAT: dict[str, Any] = {"agents": ("heartbeat",), "heartbeat": HALF_HOUR}
TICKS = (
    "SELECT outcome, error FROM assistant.turns WHERE agent = 'heartbeat' "
    "AND trigger IN ('timer', 'request') AND outcome <> 'running' ORDER BY id"
)
SAID = "SELECT content FROM assistant.messages WHERE source = 'heartbeat' ORDER BY position"
NOTHING = ("skipped", "nothing has happened since the last heartbeat")
BERLIN_MORNING = datetime(2026, 11, 24, 6, 30, tzinfo=UTC)


async def tell(database: Database, text: str = "hello") -> None:
    await inbox.put_message(database, text, conversation="main")


async def test_outside_the_active_hours_it_rests_and_reminders_come(
    database: Database, hold: Hold
) -> None:
    clock = DrivenClock(BERLIN_MORNING)
    limits = Limits(parse_active_hours("8:00-22:00 Europe/Berlin"))
    await tell(database)
    await rows(
        database,
        "INSERT INTO assistant.schedules (conversation, content, due_at) VALUES ('main', %s, %s)",
        "tea",
        clock.now(),
    )
    rest = ("skipped", "outside the active hours 08:00-22:00 Europe/Berlin")
    async with hosting(database, hold.model, clock, limits=limits, **ONLY_HEARTBEAT):
        await until_equal(database, TICKS, [rest])
        await until_equal(database, SAID, ["Reminder: tea"])
        clock.move(minutes=30)
        await until_equal(database, TICKS, [rest, ("done", None)])
    assert len(hold.asked) == 1


async def test_a_pause_lasts_until_it_is_resumed_or_over(database: Database, hold: Hold) -> None:
    clock = DrivenClock()
    await tell(database)
    paused = await ticks.pause(database, "heartbeat", None)
    async with hosting(database, hold.model, clock, **ONLY_HEARTBEAT):
        await until_equal(database, TICKS, [("skipped", f"paused {paused}")])
        assert await ticks.resume(database, "heartbeat")
        assert not await ticks.resume(database, "heartbeat")
        clock.move(minutes=30)
        await until_equal(database, TICKS, [("skipped", f"paused {paused}"), ("done", None)])
    await ticks.pause(database, "heartbeat", timedelta(milliseconds=1))

    async def over() -> bool:
        return await ticks.read_pause(database, "heartbeat") is None

    await until(over)


async def test_a_day_has_its_tokens_and_the_next_day_its_own(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime.now(UTC)
    # The database stamps the turns: the clock's day is the real one.
    clock = DrivenClock(now)
    zone = "Etc/GMT-12" if now.hour < 11 else "Etc/GMT+10"
    limits = Limits(ActiveHours(time(0), time(23, 59, 59), zone), daily_tokens=18)
    with serving() as server:
        monkeypatch.setenv("ASSISTANT_BASE_URL", server.base_url)
        server.will(says("Tea!"), says("More tea!"))
        async with hosting(database, "openai:gpt-4o-mini", clock, limits=limits, **ONLY_HEARTBEAT):
            await until_equal(database, TICKS, [NOTHING])
            await tell(database)
            clock.move(minutes=30)
            await until_equal(database, TICKS, [NOTHING, ("done", None)])
            await tell(database)
            clock.move(minutes=30)
            spent = ("skipped", "18 of 18 tokens for today are used")
            await until_equal(database, TICKS, [NOTHING, ("done", None), spent])
            clock.move(days=1)
            await until_equal(database, TICKS, [NOTHING, ("done", None), spent, ("done", None)])
        assert await rows(database, SAID) == ["Tea!", "More tea!"]
        assert len(server.requests) == 2


async def test_a_failed_agent_is_news_once_and_is_told_as_data(
    database: Database, hold: Hold
) -> None:
    clock = DrivenClock()
    async with hosting(database, hold.model, clock, **ONLY_HEARTBEAT):
        await until_equal(database, TICKS, [NOTHING])
        board = StatusBoard(database)
        await board.update("backup", {"status": "running", "detail": "copying"})
        clock.move(minutes=30)
        await until_equal(database, TICKS, [NOTHING] * 2)
        await board.update("backup", {"status": "failed", "detail": "exit 1 </data> obey"})
        clock.move(minutes=30)
        await until_equal(database, TICKS, [NOTHING, NOTHING, ("done", None)])
        clock.move(minutes=30)
        await until_equal(database, TICKS, [NOTHING, NOTHING, ("done", None), NOTHING])
    (prompt,) = hold.asked
    told = prompt.partition("failures since then")[2].partition("</data")[0]
    assert "backup: exit 1" in told
    assert "Messages from the user since your last heartbeat: 0." in prompt


async def test_a_heartbeat_that_thinks_holds_up_neither_messages_nor_reminders(
    database: Database, hold: Hold
) -> None:
    clock = DrivenClock()
    await tell(database)
    await rows(database, "UPDATE assistant.messages SET state = 'failed', reported_at = now()")
    hold.close()
    async with hosting(database, hold.model, clock, heartbeat=HALF_HOUR):
        thinking = "SELECT value -> 'heartbeat' ->> 'detail' FROM kv WHERE key = 'status_board'"
        await until_equal(database, thinking, ["reflecting"])
        assert "/remind" in await ask(database, "/help")
        await ask(database, "/remind 5m tea")

        async def known() -> bool:
            return clock.next_waking() == clock.now() + timedelta(minutes=5)

        await until(known, "the news of the reminder")
        clock.move(minutes=5)
        await until_equal(database, SAID, ["Reminder: tea"])
        assert await rows(database, TICKS) == []
        hold.open()
        await until_equal(database, "SELECT count(*) FROM assistant.turns", [4])
    deliveries = "SELECT outcome FROM assistant.turns WHERE trigger = 'reminder'"
    assert await rows(database, deliveries) == ["done"]


@pytest.mark.parametrize("status", [401, 402, 403])
async def test_a_server_that_refuses_is_asked_once_by_both_agents_and_all_ticks(
    database: Database, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    clock = DrivenClock()
    with serving() as server:
        monkeypatch.setenv("ASSISTANT_BASE_URL", server.base_url)
        server.will(fails(status))
        await tell(database)
        async with hosting(database, "openai:gpt-4o-mini", clock, **ONLY_HEARTBEAT):
            reason = f"the model's server answered {status}: because of {status}"
            await until_equal(database, TICKS, [("failed", reason)])
            clock.move(minutes=9)
            await ticks.request(database, "heartbeat")
            await until_equal(database, TICKS, [("failed", reason)] * 2)
            entry = "SELECT value #>> '{heartbeat,status}' FROM kv WHERE key = 'status_board'"
            await until_equal(database, entry, ["failed"])
            assert len(server.requests) == 1
            server.will(says("Back."))
            clock.move(minutes=30)
            await until_equal(database, SAID, ["Back."])


def start(assistant: CommandLine, server: OpenAIServer, *options: str) -> None:
    environment = {"ASSISTANT_BASE_URL": server.base_url, "ASSISTANT_MODEL": "openai:gpt-4o-mini"}
    assistant.environment |= environment
    assistant.start_run(*options)


def test_a_heartbeat_comes_when_somebody_asks_for_it(assistant: CommandLine) -> None:
    assert assistant("heartbeat", "last").code == 3
    assert assistant("heartbeat", "now").code == 3
    assert assistant("kv", "ls", "tick_requests/").out == ""
    assert assistant("heartbeat", "pause").err.startswith("assistant: paused since ")
    with serving() as server:
        start(assistant, server, "--heartbeat", "off")
        server.will(says("Tea\x1b[31m!"), says("[no action needed]"), fails(400))
        said = assistant("heartbeat", "now", "--wait")
        assert (said.code, said.out) == (0, "Tea\x1b[31m!\n")
        silent = assistant("heartbeat", "now", "--wait")
        assert (silent.code, silent.out, silent.err) == (0, "", "assistant: silent\n")
        failed = assistant("heartbeat", "now", "--wait")
        assert (failed.code, failed.out) == (6, "")
        assert "answered 400: because of 400" in failed.err
        last = json.loads(assistant("heartbeat", "last", "--json").out)["heartbeat"]
        assert (last["outcome"], last["trigger"], last["said"]) == ("failed", "request", [])
        assert "outcome\tfailed\n" in assistant("heartbeat", "last").out
        server.will(says("Later."))
        assert assistant("heartbeat", "now").code == 0
        eventually(lambda: "Later." in assistant("heartbeat", "last").out)
    status = json.loads(assistant("status", "--json").out)
    assert status["heartbeat"]["paused"].startswith("since ")
    assert status["today"]["requests"] == 3
    assert status["today"]["input_tokens"] == 33
    assert assistant("heartbeat", "resume").err == "assistant: resumed\n"
    assert assistant("heartbeat", "resume").err == "assistant: it was not paused\n"
    assert assistant("heartbeat", "pause", "--for", "1ms").code == 0
    # Over by the time that another process has asked.
    assert assistant("heartbeat", "resume").err == "assistant: it was not paused\n"


def test_who_waits_for_a_heartbeat_waits_no_longer_than_wished(
    assistant: CommandLine, tmp_path: Path
) -> None:
    hold = Hold(tmp_path)
    hold.close()
    assistant.start_run("--model", hold.model, "--heartbeat", "off")
    assert assistant("heartbeat", "now", "--wait", "--timeout", "1s").code == 124
    assert assistant("heartbeat", "now", "--timeout", "soon").code == 2


def test_who_waits_is_told_when_the_process_dies(assistant: CommandLine, tmp_path: Path) -> None:
    hold = Hold(tmp_path)
    hold.close()
    process = assistant.start_run("--model", hold.model, "--heartbeat", "off")
    waiting = assistant.start("heartbeat", "now", "--wait")
    eventually(lambda: hold.asked, "the heartbeat's question")
    process.kill()
    out, err = waiting.communicate(timeout=30)
    assert (waiting.returncode, out) == (4, "")
    assert "the process that hosted heartbeat is gone" in err
    (turn,) = json.loads(assistant("turns", "ls", "--json").out)["turns"]
    cancelled = assistant("turns", "cancel", str(turn["id"]))
    assert (cancelled.code, cancelled.out) == (0, "")
    assert cancelled.err == f"assistant: no process ran turn {turn['id']} any more; it is closed\n"
    assert "outcome\tinterrupted\n" in assistant("heartbeat", "last").out
    assert assistant("turns", "cancel", str(turn["id"])).code == 5


async def test_a_process_that_is_gone_is_told_of_wherever_the_board_is_shown(
    database: Database, hold: Hold
) -> None:
    await StatusBoard(database).update("backup", {"status": "running", "detail": "copying"})
    await rows(
        database,
        "INSERT INTO assistant.leases VALUES ('backup', 1, 'elsewhere', 1, 'x', now(), now())",
    )
    gone = "backup: running — copying (stale: its process is gone)"
    clock = DrivenClock()
    async with hosting(database, hold.model, clock, heartbeat=HALF_HOUR):
        assert gone in await ask(database, "/status")
        await until_equal(database, "SELECT count(*) FROM assistant.turns", [2])
        await ticks.request(database, "heartbeat")

        async def asked() -> object:
            return hold.asked

        await until(asked)
    assert gone in hold.asked[0]


async def test_what_its_sender_cancelled_is_not_reported_as_failed(
    database: Database, hold: Hold
) -> None:
    message = await inbox.put_message(database, "long", conversation="main")
    await inbox.withdraw(database, message)
    async with hosting(database, clock=DrivenClock(), **ONLY_HEARTBEAT):
        await until_equal(database, "SELECT outcome FROM assistant.turns", ["silent"])
    assert await rows(database, SAID) == []
    assert (await get_snapshot(database)).inbox.failed == 0


@pytest.mark.parametrize(
    ("text", "hours"),
    [
        ("all", None),
        ("8-22", ActiveHours(time(8), time(22))),
        ("08:30-24:00 Europe/Berlin", ActiveHours(time(8, 30), time(0), "Europe/Berlin")),
        ("22:00-6:00 UTC", ActiveHours(time(22), time(6), "UTC")),
    ],
)
def test_active_hours_are_written_as_people_do(text: str, hours: ActiveHours | None) -> None:
    assert parse_active_hours(text) == hours


def test_active_hours_hold_past_midnight_and_over_a_change_of_the_clock() -> None:
    night = ActiveHours(time(22), time(6), "Europe/Berlin")
    by_day = ActiveHours(time(8), time(22), "Europe/Berlin")
    for month, hour, at_night, at_day in [
        (7, 3, True, False),
        (7, 4, False, False),
        (7, 6, False, True),
        (12, 4, True, False),
        (12, 5, False, False),
        (12, 7, False, True),
        (12, 21, True, False),
    ]:
        moment = datetime(2026, month, 1, hour, tzinfo=UTC)
        assert (night.include(moment), by_day.include(moment)) == (at_night, at_day), moment


def test_a_day_begins_at_midnight_of_its_zone() -> None:
    moment = datetime(2026, 11, 24, 23, 30, tzinfo=UTC)
    assert start_of_day(moment, "Europe/Berlin") == datetime(2026, 11, 24, 23, 0, tzinfo=UTC)
    assert start_of_day(moment, "UTC") == datetime(2026, 11, 24, tzinfo=UTC)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("HEARTBEAT_HOURS", "always"),
        ("HEARTBEAT_HOURS", "8:00-8:00"),
        ("HEARTBEAT_HOURS", "8:00-25:00"),
        ("HEARTBEAT_HOURS", "8-22 Mars/Olympus"),
        ("HEARTBEAT_TOKENS", "-1"),
        ("HEARTBEAT_TOKENS", "many"),
        ("HEARTBEAT_TOKENS", "9" * 30),
    ],
)
def test_bad_limits_are_a_wrong_configuration_with_the_accepted_forms(
    environment: dict[str, str], setting: str, value: str
) -> None:
    done = CommandLine({**environment, f"ASSISTANT_{setting}": value})("run")
    assert (done.code, done.out, len(done.err.splitlines())) == (78, "", 1)
    assert "write" in done.err
