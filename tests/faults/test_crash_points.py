"""`kill -9` at each named point: the process dies there, and the next one finishes the work."""

from __future__ import annotations

import re
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

import assistant_cli
from assistant_cli.store import inbox, schedules
from assistant_cli.store.database import Database
from assistant_cli.timing import Timing

from ..conftest import CommandLine
from .checker import check
from .final import read_store
from .history import History

PACKAGE = Path(assistant_cli.__file__).parent
POINTS = sorted(
    name
    for path in PACKAGE.rglob("*.py")
    for name in re.findall(r'\breach\("([\w.]+)"\)', path.read_text("utf-8"))
)
EMBEDDED = ("cluster.", "launch.", "database.")
RUN_OPTIONS = ("--until-idle", "--heartbeat", "1h")


def points_of(*prefixes: str) -> list[str]:
    return [name for name in POINTS if name.startswith(prefixes)]


@pytest.fixture
async def work(database: Database) -> None:
    """Messages that wait, and two things that are due."""
    await inbox.put_message(database, "first", conversation="a")
    await inbox.put_message(database, "second", conversation="a")
    await inbox.put_message(database, "third", conversation="b")
    due = datetime.now(UTC) - timedelta(seconds=5)
    every_hour = Timing("every", "1h", None, due)
    await schedules.add_schedule(database, "the hour", every_hour, action="say")
    once = Timing("at", None, "UTC", due)
    await schedules.add_schedule(database, "stretch", once, action="remind")


def failing_once(folder: Path) -> str:
    """A model that fails the first time, and then repeats what it is asked."""
    return f"command:mkdir '{folder}/failed' 2>/dev/null && exit 1; sed 's/^/re: /'"


def dies(assistant: CommandLine, point: str, *arguments: str) -> None:
    """Run a command that must be killed at a point."""
    environment = assistant.environment
    done = CommandLine({**environment, "ASSISTANT_CRASH_AT": point})(*arguments)
    assert done.code == -signal.SIGKILL, (done, point)


def test_there_are_points_before_and_after_each_commit() -> None:
    assert len(POINTS) == len(set(POINTS)) > 30
    sides = {name.rpartition(".")[0]: set[str]() for name in POINTS}
    for name in POINTS:
        sides[name.rpartition(".")[0]].add(name.rpartition(".")[2])
    assert all(found >= {"before", "after"} for found in sides.values())


@pytest.mark.usefixtures("work")
@pytest.mark.parametrize(
    "point", sorted(set(POINTS) - set(points_of(*EMBEDDED, "migration.", "orphans.", "send.")))
)
def test_a_run_that_dies_is_finished_by_the_next(
    assistant: CommandLine, dsn: str, tmp_path: Path, point: str
) -> None:
    options = (*RUN_OPTIONS, "--model", failing_once(tmp_path))
    if not point.startswith("failure."):
        (tmp_path / "failed").mkdir()
    if point.startswith("effects."):
        assistant("send", "/remember tea", "--conversation", "c")
    # A heartbeat has thoughts while no message is being answered, and might meet the failure.
    alone = {"thought": ("--agent", "heartbeat"), "failure": ("--agent", "conversation")}
    dies(assistant, point, "run", *options, *alone.get(point.partition(".")[0], ()))
    with psycopg.connect(dsn, autocommit=True) as sql:
        sql.execute("UPDATE assistant.messages SET retry_at = NULL WHERE state = 'waiting'")
    done = assistant("run", *options)
    assert done.code == 0, done.err
    if point.startswith("effects."):
        assert assistant("kv", "ls", "memory/notes/").out.count("\n") == 1
        with psycopg.connect(dsn, autocommit=True) as sql:
            # The checker knows answers by what they repeat.
            taken = sql.execute("DELETE FROM assistant.messages WHERE conversation = 'c'")
            assert taken.rowcount == 2
    final = read_store(dsn)
    assert check(History([], []), final) == []
    assert final.leases == {}
    idle = {"status": "idle", "detail": None}
    assert final.board == {"conversation": idle, "heartbeat": idle}
    with psycopg.connect(dsn) as sql:
        said = "SELECT content FROM assistant.messages WHERE source = 'heartbeat' ORDER BY content"
        contents = [row[0] for row in sql.execute(said) if not row[0].startswith("re: ")]
        assert contents == ["Reminder: stretch", "the hour"]
        ticks = "SELECT count(*) FROM assistant.turns WHERE trigger = 'timer'"
        assert sql.execute(ticks).fetchone() == (1,)


@pytest.mark.usefixtures("work")
@pytest.mark.parametrize("point", points_of("orphans."))
def test_a_worker_that_dies_giving_back_what_another_left_is_followed_by_the_next(
    assistant: CommandLine, dsn: str, tmp_path: Path, point: str
) -> None:
    (tmp_path / "failed").mkdir()
    options = (*RUN_OPTIONS, "--model", failing_once(tmp_path))
    dies(assistant, "claim.after", "run", "--agent", "conversation@b", *options)
    with psycopg.connect(dsn, autocommit=True) as sql:
        # It lapses only when the other worker is up.
        sql.execute("UPDATE assistant.leases SET expires_at = clock_timestamp() + interval '3 s'")
    dies(assistant, point, "run", *options[1:])
    assert assistant("run", *options).code == 0
    final = read_store(dsn)
    assert check(History([], []), final) == []
    assert {row["state"] for row in final.messages if row["role"] == "user"} == {"answered"}


@pytest.mark.parametrize("point", points_of("send."))
def test_a_message_sent_again_after_a_crash_is_kept_once(
    assistant: CommandLine, dsn: str, point: str
) -> None:
    dies(assistant, point, "send", "hello", "--id", "mine")
    assert assistant("send", "hello", "--id", "mine").code == 0
    assert [row["content"] for row in read_store(dsn).messages] == ["hello"]


@pytest.mark.parametrize("point", points_of("migration."))
def test_a_migration_that_dies_is_taken_again_or_was_taken(
    empty_dsn: str, environment: dict[str, str], point: str
) -> None:
    assistant = CommandLine({**environment, "ASSISTANT_DATABASE_URL": empty_dsn})
    dies(assistant, point, "db", "migrate")
    assert assistant("db", "migrate").code == 0
    assert assistant("kv", "set", "a", "1").code == 0


@pytest.mark.parametrize("point", points_of(*EMBEDDED))
def test_a_start_of_the_embedded_server_that_dies_is_finished_by_the_next(
    private_home: Path, environment: dict[str, str], point: str
) -> None:
    assistant = CommandLine({**environment, "ASSISTANT_HOME": str(private_home)})
    dies(assistant, point, "kv", "set", "a", "1")
    done = assistant("kv", "set", "a", "2")
    assert done.code == 0, done.err
    assert assistant("kv", "get", "a").out == "2\n"


def test_a_point_is_passed_until_its_occasion(assistant: CommandLine, dsn: str) -> None:
    assistant("kv", "set", "a", "1")
    dies(assistant, "board.before:3", "run", *RUN_OPTIONS)
    events = read_store(dsn).board_events
    assert len(events) >= 2, events
