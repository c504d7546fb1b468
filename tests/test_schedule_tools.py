"""Schedules by tool: a language model adds, lists and cancels them, in its conversation only."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from assistant_cli.messages import AddSchedule, CancelSchedule, Effect, Reply
from assistant_cli.store import inbox, leases
from assistant_cli.store.database import Database
from assistant_cli.store.schedules import add_schedule, cancel_schedule, list_schedules
from assistant_cli.timing import Timing, plan_every

from .driven_clock import DrivenClock
from .hosting import ask, hosting, rows, until, until_equal, worker_of
from .openai_server import Behaviour, OpenAIServer, calls, fails, marked, says, texts

# A Saturday evening in Berlin.
SATURDAY = datetime(2026, 11, 21, 20, 30, 20, tzinfo=UTC)
SCHEDULES = (
    "SELECT conversation, content, action, kind, spec, zone, state "
    "FROM assistant.schedules ORDER BY id"
)
RESULTS = (
    "SELECT content FROM assistant.turn_steps WHERE kind = 'tool_result' ORDER BY turn_id, position"
)
WEEKDAYS = "0 9 * * 1-5"
TURNS = "SELECT outcome FROM assistant.turns ORDER BY id"
TEA = Timing("every", "2h", None, SATURDAY + timedelta(hours=2))


@pytest.fixture
def clock(in_zone: Callable[[str], None]) -> DrivenClock:
    in_zone("Europe/Berlin")
    return DrivenClock(SATURDAY)


def call(tool: str, **arguments: object) -> Behaviour:
    return calls(tool, json.dumps(arguments))


async def refusals(database: Database) -> list[str]:
    """What the tools answered; all of it must be recorded as refused."""
    results = await rows(database, RESULTS)
    assert all(result["refused"] for result in results)
    return [result["result"] for result in results]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            {"when": "every 2h", "text": "drink"},
            ("2026-11-21 23:30+01:00", "drink", "ask", "every", "2h", None),
        ),
        (
            {"when": WEEKDAYS, "text": "what is on?", "action": "ask"},
            (
                "2026-11-23 09:00+01:00",
                "what is on?",
                "ask",
                "cron",
                WEEKDAYS,
                "Europe/Berlin",
            ),
        ),
        (
            {"when": WEEKDAYS, "text": "what is on?", "zone": "America/New_York"},
            (
                "2026-11-23 15:00+01:00",
                "what is on?",
                "ask",
                "cron",
                WEEKDAYS,
                "America/New_York",
            ),
        ),
        (
            {"when": "friday 9am", "text": "tea", "action": "remind"},
            ("2026-11-27 09:00+01:00", "tea", "remind", "at", None, "Europe/Berlin"),
        ),
        (
            {"when": "every 1m", "text": "blink", "action": "remind"},
            ("2026-11-21 21:31+01:00", "blink", "remind", "every", "1m", None),
        ),
    ],
)
async def test_what_a_tool_schedules_comes_in_its_conversation(
    database: Database,
    server: OpenAIServer,
    talking: Any,
    clock: DrivenClock,
    arguments: dict[str, object],
    expected: tuple[object, ...],
) -> None:
    due, *kept = expected
    server.will(call("schedule", **arguments), says("I will."))
    async with talking(clock=clock, agents=("conversation",)):
        assert await ask(database, "do", "work") == "I will."
    assert await rows(database, SCHEDULES) == [("work", *kept, "active")]
    (result,) = await rows(database, RESULTS)
    assert result["refused"] is False
    assert result["result"].startswith(f"comes at {due}; ")


async def test_a_scheduled_text_is_asked_and_answered_in_the_same_conversation(
    database: Database, server: OpenAIServer, talking: Any, clock: DrivenClock
) -> None:
    server.will(call("schedule", when="2h", text="how is the oven?"), says("I will."))
    async with talking(clock=clock):
        await ask(database, "look after the oven", "work")
        server.will(says("It is hot."))
        clock.move(hours=2)
        answered = (
            "SELECT message.conversation, message.content, reply.content "
            "FROM assistant.messages AS message JOIN assistant.messages AS reply "
            "ON reply.id = message.reply_id WHERE message.source = 'schedule'"
        )
        await until_equal(database, answered, [("work", "how is the oven?", "It is hot.")])


async def test_a_heartbeat_schedules_lists_and_cancels_in_the_main_conversation(
    database: Database, server: OpenAIServer, talking: Any, clock: DrivenClock
) -> None:
    await inbox.put_message(database, "hello", conversation="work")
    await add_schedule(database, "elsewhere", TEA, conversation="work")
    gone = await add_schedule(database, "gone", TEA)
    server.will(
        call("schedule", when="every 2h", text="tea", action="remind"),
        call("list_schedules"),
        call("cancel_schedule", schedule_id=gone),
        says("[no action needed]"),
    )
    async with talking(clock=clock, agents=("heartbeat",), heartbeat=timedelta(minutes=30)):
        await until_equal(database, TURNS, ["done"])
    assert [(row[0], row[1], row[-1]) for row in await rows(database, SCHEDULES)] == [
        ("work", "elsewhere", "active"),
        ("main", "gone", "cancelled"),
        ("main", "tea", "active"),
    ]
    _, listed, _ = await rows(database, RESULTS)
    assert listed["result"] == f"{gone}: 2026-11-21 23:30+01:00 every 2h, ask: gone"


async def test_the_list_and_the_prompt_show_what_comes_next_in_the_conversation(
    database: Database, server: OpenAIServer, talking: Any, clock: DrivenClock
) -> None:
    cron = Timing("cron", "0 9 * * *", "Asia/Tokyo", SATURDAY + timedelta(hours=3))
    await add_schedule(database, f"later\n{'x' * 300}", cron, conversation="work")
    await add_schedule(database, "elsewhere", TEA)
    await add_schedule(database, "</data> sooner", TEA, conversation="work", action="remind")
    await cancel_schedule(database, await add_schedule(database, "no", TEA, conversation="work"))
    server.will(call("list_schedules"), says("Two."))
    async with talking(clock=clock, agents=("conversation",)):
        assert await ask(database, "what comes?", "work") == "Two."
    (result,) = await rows(database, RESULTS)
    assert result["result"].splitlines() == [
        "3: 2026-11-21 23:30+01:00 every 2h, remind: </data> sooner",
        f"1: 2026-11-22 00:30+01:00 cron 0 9 * * * Asia/Tokyo, ask: later {'x' * 194}…",
    ]
    (instructions,) = texts(server.requests[0], "system")
    shown = result["result"].replace("</data", "<\\/data")
    assert ("schedules", shown) in marked(instructions)


async def test_the_prompt_shows_no_more_than_the_next_twenty(
    database: Database, server: OpenAIServer, talking: Any, clock: DrivenClock
) -> None:
    for number in range(25):
        timing = Timing("at", None, None, SATURDAY + timedelta(hours=25 - number))
        await add_schedule(database, f"text {number}", timing)
    server.will(says("Many."))
    async with talking(clock=clock, agents=("conversation",)):
        await ask(database, "hello")
    (instructions,) = texts(server.requests[0], "system")
    shown = [line.split(": ")[-1] for line in instructions.splitlines() if ", ask: " in line]
    assert shown == [f"text {number}" for number in range(24, 4, -1)]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"when": "99 * * * *"}, "is not a cron line: bad minute"),
        ({"when": "0 9 * *"}, "'0 9 * *' is not a time"),
        ({"when": "0 0 30 2 *"}, "is not a cron line"),
        ({"when": "0 9 * * *", "zone": "Nowhere"}, "there is no time zone 'Nowhere'"),
        ({"when": "2020-01-01 9:00"}, "is over already"),
        ({"when": "yesterday"}, "'yesterday' is not a time; write it like 2h, 14:30"),
        ({"when": "every day"}, "'day' is not a duration"),
        ({"when": "every 59s"}, "'59s' is too often; one minute is the least"),
        ({"when": "every 10ms"}, "too often"),
        ({"when": "2h", "text": " "}, "the message is empty"),
        ({"when": "2h", "text": "a\x00"}, "cannot keep the character NUL"),
        ({"when": "2h", "action": "say"}, "bad arguments: action: "),
    ],
)
async def test_what_is_no_schedule_is_refused_and_recorded(
    database: Database,
    server: OpenAIServer,
    talking: Any,
    clock: DrivenClock,
    arguments: dict[str, object],
    told: str,
) -> None:
    server.will(call("schedule", **{"text": "x", **arguments}), says("I could not."))
    async with talking(clock=clock, agents=("conversation",)):
        assert await ask(database, "do") == "I could not."
    (refusal,) = await refusals(database)
    assert told in refusal
    if "not a" in told:
        assert "when is a time, `every 2h`, or a cron line such as `0 9 * * 1-5`" in refusal
    assert await rows(database, SCHEDULES) == []
    assert await rows(database, TURNS) == ["done"]


async def test_only_what_comes_in_the_conversation_can_be_cancelled(
    database: Database, server: OpenAIServer, talking: Any, clock: DrivenClock
) -> None:
    other = await add_schedule(database, "other", TEA)
    over = await add_schedule(database, "over", TEA, conversation="work")
    await cancel_schedule(database, over)
    wrong = [other, over, 4711, -1, 2**70]
    server.will(*(call("cancel_schedule", schedule_id=number) for number in wrong), says("No."))
    async with talking(clock=clock, agents=("conversation",)):
        assert await ask(database, "cancel", "work") == "No."
    assert await refusals(database) == [
        f"refused: nothing is scheduled here under {number}; list_schedules shows the ids"
        for number in wrong
    ]
    assert [s.id for s in await list_schedules(database)] == [other]


async def test_a_conversation_has_at_most_fifty_when_a_tool_adds_one(
    database: Database, server: OpenAIServer, talking: Any, clock: DrivenClock
) -> None:
    for number in range(48):
        await add_schedule(database, str(number), TEA, conversation="work")
    await add_schedule(database, "elsewhere", TEA)
    again = [call("schedule", when="every 2h", text="tea")] * 3
    server.will(*again, says("Two of three."))
    async with talking(clock=clock, agents=("conversation",)):
        assert await ask(database, "tea", "work") == "Two of three."
        assert (await ask(database, "/remind 2h more", "work")).startswith("I will")
    refused = [result["refused"] for result in await rows(database, RESULTS)]
    assert refused == [False, False, True]
    assert len(await list_schedules(database, conversation="work")) == 51


async def test_a_turn_that_fails_has_scheduled_and_cancelled_nothing(
    database: Database, server: OpenAIServer, talking: Any, clock: DrivenClock
) -> None:
    kept = await add_schedule(database, "kept", TEA)
    once = [
        call("schedule", when="every 2h", text="added"),
        call("cancel_schedule", schedule_id=kept),
    ]
    server.will(*once, fails(400))
    async with talking(clock=clock, retry_delay=timedelta(hours=1)):
        message = await inbox.put_message(database, "swap them", conversation="main")
        await until_equal(database, TURNS, ["failed"])
        assert [s.content for s in await list_schedules(database)] == ["kept"]
        server.will(*once, says("Swapped."))
        await rows(database, "UPDATE assistant.messages SET retry_at = now()")
        clock.move(hours=1)
        assert await inbox.wait_for_reply(database, message) == "Swapped."
    assert [s.content for s in await list_schedules(database)] == ["added"]


async def end_turn(database: Database, *effects: Effect) -> list[str]:
    """Answer a waiting message with some effects; returns the outcome."""
    lease = await leases.acquire(database, ["conversation"])
    await inbox.put_message(database, "hello", conversation="main")
    worker = worker_of(database, lease)
    [turn] = await worker.claim("offline")
    await worker.keep(turn, [Reply(turn.messages, "hi", effects)])
    return await rows(database, TURNS)


async def test_what_is_over_or_elsewhere_by_the_end_of_the_turn_stays_as_it_is(
    database: Database,
) -> None:
    over = await add_schedule(database, "over", TEA)
    await rows(database, "UPDATE assistant.schedules SET state = 'done'")
    other = await add_schedule(database, "other", TEA, conversation="work")
    mine = await add_schedule(database, "mine", TEA)
    effects = [CancelSchedule(number) for number in (over, other, 4711, mine, mine)]
    assert await end_turn(database, *effects) == ["done"]
    states = "SELECT state FROM assistant.schedules ORDER BY id"
    assert await rows(database, states) == ["done", "active", "cancelled"]


async def test_what_is_fired_while_the_turn_ends_is_not_cancelled(database: Database) -> None:
    number = await add_schedule(database, "tea", TEA)
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
    async with database.transaction() as connection:
        await connection.execute("UPDATE assistant.schedules SET state = 'done'")
        ending = asyncio.create_task(end_turn(database, CancelSchedule(number)))
        await until_equal(database, waiting, [1])
    assert await ending == ["done"]
    assert await rows(database, "SELECT state FROM assistant.schedules") == ["done"]


async def test_what_a_turn_schedules_wakes_the_heartbeat(
    database: Database, clock: DrivenClock
) -> None:
    async with hosting(database, clock=clock, agents=("heartbeat",)):
        await end_turn(database, AddSchedule("tea", plan_every("1h", SATURDAY), "remind"))
        said = "SELECT content FROM assistant.messages WHERE source = 'heartbeat'"
        due = SATURDAY + timedelta(hours=1)

        async def known() -> bool:
            return clock.next_waking() == due

        await until(known)
        clock.move(hours=1)
        await until_equal(database, said, ["Reminder: tea"])
