"""Commands in messages: obeyed the same under every model, each effect exactly once."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from uuid import uuid4

import pytest

from assistant_cli.agents.commands import is_command, obey
from assistant_cli.messages import AddSchedule, Message, Reply
from assistant_cli.store.database import Database
from assistant_cli.timing import Timing

from .driven_clock import DrivenClock
from .hosting import ask, hosting, rows

NOT_ASKED = Database("host=/nowhere")
MODELS = ["offline", "command:tr a-z A-Z"]

# A Friday, two days before the clocks of Berlin go forward.
FRIDAY = datetime(2026, 3, 27, 14, 30, 20, tzinfo=UTC)


@pytest.fixture
def berlin(in_zone: Callable[[str], None]) -> None:
    in_zone("Europe/Berlin")


def message(text: str) -> Message:
    return Message(uuid4(), "main", "user", text, "me", "cli", "working", FRIDAY)


async def remind(argument: str, now: datetime = FRIDAY) -> Reply:
    return await obey(message(f"/remind {argument}"), NOT_ASKED, DrivenClock(now))


@pytest.mark.parametrize("model", MODELS)
async def test_commands_are_obeyed_the_same_under_every_model(
    database: Database, model: str
) -> None:
    async with hosting(database, model):
        assert await ask(database, "/memory") == (
            "There are no notes yet; /remember TEXT keeps one."
        )
        assert await ask(database, "/remember tea at five\nor six") == "Remembered."
        assert await ask(database, "  /remember coffee ") == "Remembered."
        assert await ask(database, "/memory") == "- tea at five\nor six\n- coffee"
        assert await ask(database, "/reminders") == "There are no reminders to come."
        assert (await ask(database, "/remind 2h tea")).startswith("I will remind you at 20")
        assert (await ask(database, "/reminders")).endswith("  tea")
        assert await ask(database, "/reminders", "work") == "There are no reminders to come."
        assert "/remind 10m TEXT" in await ask(database, "/help")
        assert await ask(database, "/dance") == "There is no command /dance; /help lists them."
        assert (await ask(database, "/status")).splitlines() == [
            "conversation: running — answering 1 message in main",
            "heartbeat: idle",
            "messages waiting: 0",
        ]
    assert await rows(database, "SELECT content FROM assistant.schedules") == ["tea"]
    assert len(await database.kv.list_keys("memory/")) == 2


async def test_other_text_gets_the_plain_fact(database: Database) -> None:
    async with hosting(database):
        fact = await ask(database, "hello")
    assert fact.startswith("Your message is kept. No language model is configured")


@pytest.mark.parametrize(
    "text", ["/usr/bin/env is broken", "/ help", "//", "a /help", "/Help", "1/2", "/a-b"]
)
def test_text_that_only_looks_like_a_command_is_for_the_model(text: str) -> None:
    assert not is_command(message(text))


@pytest.mark.parametrize("text", ["/help", " /help\n", "/help me\nplease", "/x"])
def test_commands_are_recognized(text: str) -> None:
    assert is_command(message(text))


@pytest.mark.parametrize(
    ("argument", "due", "text"),
    [
        ("10m tea", "2026-03-27T14:40:20+00:00", "tea"),
        ("1h30m  tea\nand cake", "2026-03-27T16:00:20+00:00", "tea\nand cake"),
        ("10m\ntea", "2026-03-27T14:40:20+00:00", "tea"),
        ("16:00 tea", "2026-03-27T15:00:00+00:00", "tea"),
        ("today 16:00 tea", "2026-03-27T15:00:00+00:00", "tea"),
        ("15:30 tea", "2026-03-28T14:30:00+00:00", "tea"),
        ("9:05 tea", "2026-03-28T08:05:00+00:00", "tea"),
        ("tomorrow 9:00 tea", "2026-03-28T08:00:00+00:00", "tea"),
        ("2026-03-29 9:00 tea", "2026-03-29T07:00:00+00:00", "tea"),
        ("2026-12-24 18:00 tea 19:00", "2026-12-24T17:00:00+00:00", "tea 19:00"),
        ("2026-12-24T18:00 tea", "2026-12-24T17:00:00+00:00", "tea"),
        ("friday 14:00 review", "2026-04-03T12:00:00+00:00", "review"),
        ("tomorrow at 9:30 am call\nmum ", "2026-03-28T08:30:00+00:00", "call\nmum"),
        ("in 2h at 9:00", "2026-03-27T16:30:20+00:00", "at 9:00"),
    ],
)
async def test_a_reminder_is_due_at_the_hosts_time(
    berlin: None, argument: str, due: str, text: str
) -> None:
    reply = await remind(argument)
    due_at = datetime.fromisoformat(due)
    timing = Timing("at", None, "Europe/Berlin", due_at)
    assert reply.effects == (AddSchedule(text, timing, "remind"),)
    local = due_at.astimezone().strftime("%Y-%m-%d %H:%M")
    assert reply.text == f"I will remind you at {local}."


async def test_tomorrow_is_a_day_of_the_calendar(berlin: None) -> None:
    # The night in which an hour is missing.
    saturday = datetime(2026, 3, 28, 22, 30, tzinfo=UTC)
    (effect,) = (await remind("tomorrow 12:00 tea", saturday)).effects
    assert isinstance(effect, AddSchedule)
    assert effect.timing.due_at == datetime(2026, 3, 29, 10, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    "argument", ["today 9:00 tea", "2026-03-26 9:00 tea", "2020-01-01 00:00 tea"]
)
async def test_a_time_that_is_over_is_refused(berlin: None, argument: str) -> None:
    reply = await remind(argument)
    assert reply.text.endswith(" is over already.")
    assert reply.effects == ()


@pytest.mark.parametrize(
    "argument",
    [
        "",
        "tea",
        "10m",
        "10x tea",
        "-5m tea",
        "0s tea",
        "99999d tea",
        "25:00 tea",
        "9:60 tea",
        "tomorrow tea",
        "tomorrow 9:00",
        "2026-02-30 9:00 tea",
        "2026-13-01 9:00 tea",
        "0001-01-01 00:00 tea",
        "9999-12-31 23:59 tea",
        "0000-00-00 00:00 tea",
        "yesterday 9:00 tea",
        "2026-12-2\u0664 18:00 tea",
        "2036-12-24 18:00 tea",
    ],
)
@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/Los_Angeles"])
async def test_a_time_that_is_none_sets_nothing(
    in_zone: Callable[[str], None], zone: str, argument: str
) -> None:
    in_zone(zone)
    reply = await remind(argument)
    assert reply.effects == ()
    refusals = "when is like 2h, 14:30, .*18:00|is over already|ten years is the limit"
    assert re.fullmatch(rf"I cannot remind you: .*({refusals}).*\.", reply.text)


@pytest.mark.parametrize(
    ("argument", "due"),
    [
        ("10m tea", "2026-03-27T14:40:20+00:00"),
        ("20:00 tea", "2026-03-27T14:43:00+00:00"),
        ("tomorrow 9:00 tea", "2026-03-28T03:43:00+00:00"),
        ("2026-12-24 18:00 tea", "2026-12-24T12:43:00+00:00"),
    ],
)
async def test_a_reminder_comes_by_the_hosts_clock_also_where_its_zone_has_no_name(
    in_zone: Callable[[str], None], argument: str, due: str
) -> None:
    in_zone("XYZ-5:17")
    (effect,) = (await remind(argument)).effects
    timing = Timing("at", None, None, datetime.fromisoformat(due))
    assert effect == AddSchedule("tea", timing, "remind")


@pytest.mark.parametrize(
    ("text", "answer"),
    [("/remember", "What shall I remember? /remember TEXT"), ("/history x", "How many")],
)
async def test_an_argument_that_is_missing_is_asked_for(text: str, answer: str) -> None:
    reply = await obey(message(text), NOT_ASKED, DrivenClock(FRIDAY))
    assert reply.text.startswith(answer)
    assert reply.effects == ()


async def test_history_shows_what_was_said_before(database: Database) -> None:
    async with hosting(database, "command:tr a-z A-Z"):
        assert await ask(database, "/history") == "Nothing was said before."
        await ask(database, "one")
        await ask(database, "elsewhere", "work")
        await ask(database, "two")
        last = await ask(database, "/history 3")
        assert [line[17:] for line in last.splitlines()] == [
            "assistant: ONE",
            "user: two",
            "assistant: TWO",
        ]
        assert len((await ask(database, "/history 0")).splitlines()) == 3
        assert (await ask(database, "/history 9999")).splitlines()[0].endswith("user: /history")


async def test_notes_of_other_programs_are_shown_as_they_are(database: Database) -> None:
    await database.kv.set("memory/a", "plain")
    await database.kv.set("memory/b", {"x": 1})
    reply = await obey(message("/memory"), database, DrivenClock(FRIDAY))
    assert reply.text == '- plain\n- {"x": 1}'
