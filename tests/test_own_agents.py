"""Agents of one's own: a function with a decorator has all that the built-in two have."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from assistant_cli import TurnContext, agent
from assistant_cli.agents.definition import AgentDefinition, CronLine, Interval, load_agent
from assistant_cli.errors import TurnClosedError
from assistant_cli.store.database import Database

from .conftest import CommandLine, eventually
from .driven_clock import DrivenClock
from .hosting import Hold, ask, hosting, rows, until, until_equal

TURNS = "SELECT outcome, error FROM assistant.turns WHERE outcome <> 'running' ORDER BY id"
SAID = "SELECT source, conversation, content FROM assistant.messages ORDER BY position"
MINUTE = timedelta(minutes=1)


def entry(name: str) -> str:
    return f"SELECT value -> '{name}' FROM kv WHERE key = 'status_board'"


def example() -> str:
    readme = (Path(__file__).parent.parent / "README.md").read_text("utf-8")
    (code,) = [
        block for block in re.findall(r"```python\n(.*?)```", readme, re.S) if "@agent" in block
    ]
    return str(code)


def test_the_example_of_the_readme_is_hosted_with_all_that_it_promises(
    assistant: CommandLine, tmp_path: Path
) -> None:
    assert len([line for line in example().splitlines() if line.strip()]) <= 15
    (tmp_path / "disk.py").write_text(example().replace("< 90", "< 0"))
    model = ("--model", "command:sed 's/^/model: /'")
    process = assistant.start("run", "--agent", "disk:disk", *model, cwd=tmp_path)
    eventually(lambda: "model: The disk is" in assistant("history").out, "the example's word")
    assert assistant("kv", "get", "disk/percent").out.strip().isdigit()
    (shown,) = json.loads(assistant("status", "--json", "disk").out)["agents"]
    assert (shown["live"], shown["holder"]["pid"]) == (True, process.pid)
    events = assistant("status", "--history", "disk").out
    assert "running\tlooking at the disk" in events
    assert "% used" in events
    (turn,) = json.loads(assistant("turns", "ls", "--agent", "disk", "--json").out)["turns"]
    assert (turn["trigger"], turn["outcome"]) == ("timer", "done")
    second = assistant.start("run", "--agent", "disk:disk", cwd=tmp_path)
    assert second.wait(30) == 5
    process.kill()
    process.wait()
    assert assistant("status", "--check", "disk").code == 4


def test_a_process_that_stays_looks_for_garbage_as_python_does(
    assistant: CommandLine, tmp_path: Path
) -> None:
    (tmp_path / "look.py").write_text(
        "import gc\n"
        "from assistant_cli import agent\n"
        "@agent(every='1h')\n"
        "async def look(turn):\n"
        "    return str(gc.get_threshold())\n"
    )
    usual = subprocess.run(
        [sys.executable, "-c", "import gc; print(gc.get_threshold())"],
        capture_output=True,
        text=True,
        check=True,
    )
    assistant.start("run", "--agent", "look:look", cwd=tmp_path)
    eventually(lambda: assistant("history").out, "what it looks at")
    assert assistant("history", "--json").out.count(usual.stdout.strip()) == 1


async def test_it_ticks_by_its_interval_and_a_restart_neither_delays_nor_repeats(
    database: Database,
) -> None:
    clock = DrivenClock()
    ticks = []

    @agent(every="10m")
    async def counter(turn: TurnContext) -> str | None:
        ticks.append(turn.now())
        return f"tick {len(ticks)}"

    start = clock.now()
    async with hosting(database, clock=clock, agents=[counter]):
        await until_equal(database, TURNS, [("done", None)])
        await until(lambda: _waits(clock, start + 10 * MINUTE))
    clock.move(minutes=5)
    async with hosting(database, clock=clock, agents=[counter]):
        await until(lambda: _waits(clock, start + 10 * MINUTE))
        clock.move(minutes=5)
        await until_equal(database, TURNS, [("done", None)] * 2)
    assert ticks == [start, start + 10 * MINUTE]
    assert await rows(database, SAID) == [
        ("counter", "main", "tick 1"),
        ("counter", "main", "tick 2"),
    ]
    assert await rows(database, entry("counter")) == [{"status": "idle", "detail": None}]


async def _waits(clock: DrivenClock, until_moment: datetime) -> bool:
    waking = clock.next_waking()
    return waking is not None and abs(waking - until_moment) < timedelta(milliseconds=1)


async def test_it_ticks_by_a_cron_line_and_makes_up_for_missed_ones_once(
    database: Database,
) -> None:
    clock = DrivenClock(datetime(2026, 11, 23, 8, 0, tzinfo=UTC))

    @agent(cron="0 9 * * *", tz="Europe/Berlin", name="morning")
    async def work(turn: TurnContext) -> None:
        """good morning"""

    async with hosting(database, clock=clock, agents=[work]):
        await until(lambda: _waits(clock, datetime(2026, 11, 24, 8, 0, tzinfo=UTC)))
        clock.move(days=1)
        await until_equal(database, TURNS, [("silent", None)])
    clock.move(days=5)
    async with hosting(database, clock=clock, agents=[work]):
        await until_equal(database, TURNS, [("silent", None)] * 2)
        await until(lambda: _waits(clock, datetime(2026, 11, 30, 8, 0, tzinfo=UTC)))


async def test_what_it_raises_fails_the_turn_with_the_reason_and_the_place(
    database: Database,
) -> None:
    clock = DrivenClock()
    problems: list[Exception | None] = [KeyError("nothing"), TimeoutError("its own"), None]

    @agent(every="1m")
    async def broken(turn: TurnContext) -> None:
        problem = problems.pop(0)
        if problem is not None:
            raise problem

    async with hosting(database, clock=clock, agents=[broken]):
        await until_equal(database, "SELECT count(*) FROM assistant.turns", [1])
        line = r"\(test_own_agents\.py line \d+\)"

        async def failed() -> bool:
            (found,) = await rows(database, entry("broken"))
            return bool(
                found["status"] == "failed"
                and re.fullmatch(rf"turn \d+ failed: KeyError: 'nothing' {line}", found["detail"])
            )

        await until(failed)
        for count in (2, 3):
            clock.move(minutes=1)
            await until_equal(
                database,
                "SELECT count(*) FROM assistant.turns WHERE outcome <> 'running'",
                [count],
            )
        await until_equal(database, entry("broken"), [{"status": "idle", "detail": None}])
    outcomes = [outcome for outcome, _ in await rows(database, TURNS)]
    assert outcomes == ["failed", "failed", "silent"]


async def leaves() -> None:
    sys.exit(3)


async def cancels_itself() -> None:
    task = asyncio.create_task(asyncio.sleep(9))
    task.cancel()
    await task


async def cancels_the_turn() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(9)


async def interrupts() -> None:
    raise BaseExceptionGroup("both", [KeyboardInterrupt()])


async def complains_in_characters_that_no_database_keeps() -> None:
    raise ValueError("a\x00b\ud800c")


class UnspeakableError(Exception):
    def __str__(self) -> str:  # noqa: PLE0307 (it does not get there)
        sys.exit(9)


async def raises_what_cannot_be_told() -> None:
    raise UnspeakableError


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (raises_what_cannot_be_told, "UnspeakableError (test_own_agents.py line "),
        (complains_in_characters_that_no_database_keeps, "ValueError: a\ufffdb\ufffdc (test_own"),
        (leaves, "SystemExit: 3 (test_own_agents.py line "),
        (cancels_itself, "CancelledError ("),
        (cancels_the_turn, "it cancelled itself"),
        (interrupts, "BaseExceptionGroup: both (1 sub-exception) ("),
    ],
)
async def test_whatever_it_raises_ends_its_turn_and_nothing_else(
    database: Database, act: Callable[[], Awaitable[None]], reason: str
) -> None:
    @agent(every="1h")
    async def sloppy(turn: TurnContext) -> None:
        await act()

    async with hosting(database, agents=["conversation", sloppy]) as task:
        await until_equal(database, "SELECT outcome FROM assistant.turns", ["failed"])
        assert "/remind" in await ask(database, "/help")
        assert not task.done()
    errors = await rows(database, "SELECT error FROM assistant.turns WHERE agent = 'sloppy'")
    assert [error.startswith(reason) for error in errors] == [True], errors


@pytest.mark.parametrize(
    ("returned", "reason"),
    [
        (42, "odd returned int; return text or None"),
        (b"bytes", "odd returned bytes; return text or None"),
        ("\ud800", "the text is not valid UTF-8"),
        ("x" * 256_001, "a message has at most 256,000 bytes; this has 256,001"),
    ],
)
async def test_what_cannot_be_said_is_a_failed_turn(
    database: Database, returned: Any, reason: str
) -> None:
    @agent(every="1h")
    async def odd(turn: TurnContext) -> str:
        return returned  # type: ignore[no-any-return]

    async with hosting(database, agents=[odd]):
        await until_equal(database, TURNS, [("failed", reason)])
    assert await rows(database, SAID) == []


async def test_a_turn_is_closed_also_where_its_function_says_that_it_is(
    database: Database,
) -> None:
    @agent(every="1h")
    async def wrong(turn: TurnContext) -> None:
        """\x00"""
        await turn.show("a\x00b")
        raise TurnClosedError("it is closed")

    async with hosting(database, agents=[wrong]):
        await until_equal(database, TURNS, [("interrupted", "it is closed")])
    events = "SELECT detail FROM assistant.board_events WHERE status = 'running' ORDER BY id"
    assert await rows(database, events) == ["?", "a?b"]


async def test_what_it_has_done_is_not_done_again_where_it_meets_no_database(
    database: Database,
) -> None:
    elsewhere = Database("postgresql://u@127.0.0.1:1/x")
    done = []

    @agent(every="1h")
    async def careless(turn: TurnContext) -> None:
        done.append(turn.id)
        await elsewhere.kv.get("a")

    async with hosting(database, agents=[careless]):
        await until_equal(database, "SELECT outcome FROM assistant.turns", ["failed"])
    assert len(done) == 1
    (error,) = await rows(database, "SELECT error FROM assistant.turns")
    assert error.startswith("cannot reach the database")


STUBBORN = """
import asyncio
from assistant_cli import TurnContext, agent

@agent(every="1s", timeout="300ms")
async def stubborn(turn: TurnContext) -> None:
    while True:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            pass
"""


def test_one_that_ignores_its_end_holds_up_neither_the_others_nor_a_signal(
    assistant: CommandLine, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(STUBBORN)
    agents = ("--agent", "mine:stubborn", "--agent", "conversation")
    process = assistant.start("run", *agents, cwd=tmp_path, stderr=subprocess.DEVNULL)

    def turns() -> list[Any]:
        listed = json.loads(assistant("turns", "ls", "--agent", "stubborn", "--json").out)["turns"]
        return [(turn["outcome"], turn["error"]) for turn in listed]

    eventually(lambda: len(turns()) > 1 and turns()[1][0] != "running", "two turns")
    assert turns()[:2] == [
        ("timed_out", "no result within the deadline of 300ms"),
        ("failed", "an earlier turn of it has not ended; a restart of the run ends it"),
    ]
    assert "/remind" in assistant("send", "--wait", "/help").out
    process.terminate()
    assert process.wait(15) == 0
    assert assistant("status", "stubborn").out.startswith("stubborn\tidle\t")


async def test_its_own_deadline_ends_a_turn_and_the_others_are_not_held_up(
    database: Database, tmp_path: Path
) -> None:
    hold = Hold(tmp_path)
    hold.close()

    @agent(every="1h", timeout="2s")
    async def slow(turn: TurnContext) -> str:
        return await turn.ask("are you there?")

    async with hosting(database, hold.model, agents=[slow]):
        reason = "no result within the deadline of 2s"
        await until_equal(database, TURNS, [("timed_out", reason)])
    assert hold.asked == ["are you there?"]


async def test_a_language_less_model_has_nothing_to_say_for_it(database: Database) -> None:
    @agent(every="1h")
    async def asking(turn: TurnContext) -> str:
        return await turn.ask("anything?")

    async with hosting(database, agents=[asking]):
        await until_equal(database, TURNS, [("silent", None)])


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("x = 1", "no agent"),
        ("def x(turn): pass", "no agent"),
        ("raise RuntimeError('at import')", "cannot import mine: RuntimeError: at import"),
        ("this is no Python", "cannot import mine: SyntaxError"),
        ("import sys; sys.exit(0)", "cannot import mine: SystemExit: 0"),
        ("from assistant_cli import agent\n@agent\nasync def x(turn): pass", "with parentheses"),
        ("from assistant_cli import agent\n@agent()\nasync def x(turn): pass", "has no time"),
        (
            "from assistant_cli import agent\n@agent(every='soon')\nasync def x(turn): pass",
            "'soon' is not a duration",
        ),
        (
            "from assistant_cli import agent\n@agent(cron='x')\nasync def x(turn): pass",
            "'x' is not a cron line",
        ),
        (
            "from assistant_cli import agent\n@agent(every='1h', name='heartbeat')\n"
            "async def x(turn): pass",
            "the name heartbeat is taken",
        ),
        (
            "from assistant_cli import agent\n@agent(every='1h')\ndef x(turn): pass",
            "x is no async function",
        ),
        (
            "from assistant_cli import agent\n@agent(every='1h', name='a b')\n"
            "async def x(turn): pass",
            "no name for an agent",
        ),
    ],
)
def test_what_cannot_be_hosted_is_told_in_one_line_before_anything_starts(
    assistant: CommandLine, tmp_path: Path, code: str, reason: str
) -> None:
    (tmp_path / "mine.py").write_text(code)
    process = assistant.start("run", "--agent", "mine:x", cwd=tmp_path)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, len(err.splitlines())) == (78, "", 1), err
    assert reason in err


def test_two_agents_of_one_name_are_not_hosted(assistant: CommandLine, tmp_path: Path) -> None:
    for module in ("one", "two"):
        (tmp_path / f"{module}.py").write_text(example())
    process = assistant.start("run", "--agent", "one:disk", "--agent", "two:disk", cwd=tmp_path)
    out, err = process.communicate(timeout=30)
    told = "assistant: two agents are called disk; give one another name\n"
    assert (process.returncode, out, err) == (2, "", told)


def test_a_module_that_is_not_there_is_told(assistant: CommandLine) -> None:
    done = assistant("run", "--agent", "nowhere.at.all:x")
    assert (done.code, done.out) == (78, "")
    assert "cannot import nowhere.at.all" in done.err
    for reference in ("nobody", ":x", "../mine:x", "mine:", "mine:x:y"):
        told = assistant("run", "--agent", reference)
        assert (told.code, told.out) == (2, "")
        assert "pkg.module:name" in told.err


def test_the_decorator_makes_a_definition_that_can_be_called() -> None:
    @agent(every="90s", name="a", timeout="1m")
    async def work(turn: TurnContext) -> None:
        """what it does

        and more"""

    assert work == AgentDefinition("a", work.work, Interval(timedelta(seconds=90)), MINUTE)
    assert work.description == "what it does"
    with pytest.raises(ValueError, match="one of every and cron"):
        agent(every="1h", cron="* * * * *")
    with pytest.raises(ValueError, match="tz goes with cron"):
        agent(every="1h", tz="Europe/Berlin")
    assert agent(cron="*/5 * * * *")(work.work).timetable == CronLine("*/5 * * * *")


def test_a_cron_line_without_a_zone_keeps_that_which_the_host_had_as_it_was_loaded(
    in_zone: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "morning_agent.py").write_text(
        "from assistant_cli import agent\n@agent(cron='0 9 * * *')\nasync def f(turn): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    in_zone("Asia/Tokyo")
    loaded = load_agent("morning_agent:f")
    # A zone without a name, which ends no run.
    in_zone("XYZ-5:17")
    assert loaded.timetable is not None
    following = loaded.timetable.following(datetime(2026, 11, 23, 12, 0, tzinfo=UTC))
    assert following == datetime(2026, 11, 24, 0, 0, tzinfo=UTC)
