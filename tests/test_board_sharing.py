"""Updates of the board by processes that wait for each other share commits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from assistant_cli import StatusBoard
from assistant_cli.errors import LeaseLostError
from assistant_cli.store import leases
from assistant_cli.store.database import Database
from assistant_cli.store.inbox import put_message

from .conftest import eventually
from .hosting import rows, worker_of

HINT = 7238114906
WAIT = (
    "INSERT INTO assistant.board_waiting (agent, entry, token, backend, at) VALUES (%s, "
    """'{"status": "running", "detail": null}', %s, %s, clock_timestamp() - %s * interval '1 s')"""
)


@pytest.fixture
async def boards(dsn: str) -> AsyncIterator[list[StatusBoard]]:
    """The boards of as many processes, or of what the server takes for such."""
    databases = [Database(dsn) for _ in range(6)]
    yield [StatusBoard(database) for database in databases]
    for database in databases:
        await database.close()


@contextmanager
def commit_under_way(dsn: str) -> Iterator[None]:
    """What another updates, who has not committed it before the block ends."""
    with psycopg.connect(dsn) as other:
        other.execute("SELECT pg_advisory_xact_lock(%s)", [HINT])
        other.execute('SELECT assistant.write_board(\'[{"other": {"status": "idle"}}]\', \'{}\')')
        yield


async def begin(
    board: StatusBoard, agent: str, status: str, *, waiting: int = 1
) -> asyncio.Task[None]:
    """An update that waits, as so many do then."""
    update = asyncio.create_task(board.update(agent, {"status": status}))
    query = (
        "SELECT FROM pg_stat_activity WHERE datname = current_database() "
        "AND wait_event_type = 'Lock'"
    )
    with psycopg.connect(board.database.dsn, autocommit=True) as connection:
        await asyncio.to_thread(
            eventually, lambda: connection.execute(query).rowcount == waiting, "the wait"
        )
    return update


async def revision(database: Database) -> int:
    """How many writes there were until the last of the board."""
    (number,) = await rows(database, "SELECT revision FROM kv WHERE key = 'status_board'")
    return int(number)


async def events(database: Database, agent: str) -> list[Any]:
    query = "SELECT status FROM assistant.board_events WHERE agent = %s ORDER BY id"
    return await rows(database, query, agent)


async def left(database: Database) -> list[Any]:
    return await rows(database, "SELECT agent FROM assistant.board_waiting")


async def test_those_who_wait_for_a_commit_share_the_next(
    database: Database, dsn: str, boards: list[StatusBoard]
) -> None:
    with commit_under_way(dsn):
        updates = [
            await begin(board, f"a{number}", "running", waiting=number + 1)
            for number, board in enumerate(boards)
        ]
    await asyncio.gather(*updates)
    board = await database.kv.get("status_board")
    assert board.keys() == {"other", *(f"a{number}" for number in range(6))}
    # One write of the other, and one of all of these.
    assert await revision(database) == 2
    assert [await events(database, f"a{number}") for number in range(6)] == [["running"]] * 6
    assert await left(database) == []


async def test_entries_of_one_agent_keep_their_order_and_each_is_in_the_timeline(
    database: Database, dsn: str, boards: list[StatusBoard]
) -> None:
    said = ["running", "failed", "running", "idle"]
    with commit_under_way(dsn):
        updates = [
            await begin(board, "build", status, waiting=number + 1)
            for number, (board, status) in enumerate(zip(boards, said, strict=False))
        ]
    await asyncio.gather(*updates)
    assert await events(database, "build") == said


async def test_an_update_alone_is_one_write(database: Database, boards: list[StatusBoard]) -> None:
    for status in ("running", "idle"):
        await boards[0].update("build", {"status": status})
    assert await revision(database) == 2
    sequence = "SELECT is_called FROM assistant.board_waiting_id_seq"
    assert await rows(database, sequence) == [False]


async def test_whoever_holds_the_hint_hinders_nobody(
    database: Database, dsn: str, boards: list[StatusBoard]
) -> None:
    with psycopg.connect(dsn) as reader:
        reader.execute("SELECT pg_advisory_xact_lock(%s)", [HINT])
        await boards[0].update("build", {"status": "running"})
    assert await events(database, "build") == ["running"]
    assert await left(database) == []


async def test_who_lost_the_agent_while_it_waited_is_refused_and_the_others_are_not(
    database: Database, dsn: str, boards: list[StatusBoard]
) -> None:
    boards[1].lease = await leases.acquire(database, ["build"])
    with commit_under_way(dsn):
        first = await begin(boards[0], "a", "running")
        refused = await begin(boards[1], "build", "running", waiting=2)
        last = await begin(boards[2], "b", "running", waiting=3)
        await rows(database, "UPDATE assistant.leases SET token = nextval('assistant.tokens')")
    await asyncio.gather(first, last)
    with pytest.raises(LeaseLostError):
        await refused
    assert await events(database, "build") == []
    assert (await database.kv.get("status_board")).keys() == {"other", "a", "b"}
    assert await left(database) == []


async def test_the_holder_is_refused_nothing_while_it_waits(
    database: Database, dsn: str, boards: list[StatusBoard]
) -> None:
    boards[1].lease = await leases.acquire(database, ["build"])
    with commit_under_way(dsn):
        updates = [
            await begin(boards[0], "a", "running"),
            await begin(boards[1], "build", "running", waiting=2),
        ]
    await asyncio.gather(*updates)
    assert await events(database, "build") == ["running"]


async def test_nobody_waits_for_a_lease_with_the_queue_locked(
    database: Database, dsn: str, boards: list[StatusBoard]
) -> None:
    boards[1].lease = await leases.acquire(database, ["build"])
    with psycopg.connect(dsn) as taker:
        with commit_under_way(dsn):
            first = await begin(boards[0], "a", "running")
            second = await begin(boards[1], "build", "running", waiting=2)
            # Who gives an agent back locks its lease, and then waits for the queue.
            taker.execute("DELETE FROM assistant.leases")
        await first
        assert await left(database) == ["build"]
        taker.execute('SELECT assistant.write_board(\'[{"build": {"status": "idle"}}]\', \'{}\')')
    with pytest.raises(LeaseLostError):
        await second
    assert (await database.kv.get("status_board"))["build"]["status"] == "idle"
    assert await left(database) == []


async def test_what_waited_comes_before_what_is_written_later(
    database: Database, boards: list[StatusBoard]
) -> None:
    (own,) = await rows(database, "SELECT pg_backend_pid()")
    # Several entries are written by another statement than one.
    for said in (["idle"], ["failed", "idle"]):
        await rows(database, WAIT, "build", None, own, 60)
        await asyncio.gather(*(boards[0].update("build", {"status": status}) for status in said))
    assert await events(database, "build") == ["running", "idle", "running", "failed", "idle"]
    assert await left(database) == []


async def test_what_waited_comes_before_a_turn_that_begins(database: Database) -> None:
    lease = await leases.acquire(database, ["conversation"])
    await put_message(database, "hello", conversation="main")
    (own,) = await rows(database, "SELECT pg_backend_pid()")
    await rows(database, WAIT, "conversation", lease.token, own, 60)
    await worker_of(database, lease).claim("offline", 1)
    query = "SELECT detail FROM assistant.board_events ORDER BY id"
    assert await rows(database, query) == [None, "answering 1 message in main"]
    assert await left(database) == []


async def test_what_a_backend_left_that_is_gone_is_not_written(
    database: Database, dsn: str, boards: list[StatusBoard]
) -> None:
    with psycopg.connect(dsn) as gone:
        backend = gone.info.backend_pid
    await asyncio.to_thread(eventually, lambda: not alive(dsn, backend), "the end of the backend")
    await rows(database, WAIT, "build", None, backend, 2)
    await boards[0].update("a", {"status": "running"})
    assert await events(database, "build") == []
    assert await left(database) == []


def alive(dsn: str, backend: int) -> bool:
    query = "SELECT FROM pg_stat_activity WHERE pid = %s"
    with psycopg.connect(dsn) as connection:
        return bool(connection.execute(query, [backend]).rowcount)


async def test_a_writer_that_dies_while_it_waits_harms_nobody(
    database: Database, dsn: str, boards: list[StatusBoard]
) -> None:
    with commit_under_way(dsn):
        lost = await begin(boards[0], "lost", "running")
        query = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'relation'"
        )
        await rows(database, query)
        with pytest.raises(Exception, match="terminat"):
            await lost
        other = await begin(boards[1], "build", "running")
    await other
    assert await events(database, "build") == ["running"]
    assert await left(database) == []


@pytest.mark.parametrize("stored", ["[1]", "null", None])
async def test_where_no_board_is_stored_those_who_wait_make_a_new_one(
    database: Database, dsn: str, boards: list[StatusBoard], stored: str | None
) -> None:
    with psycopg.connect(dsn) as other:
        other.execute("SELECT pg_advisory_xact_lock(%s)", [HINT])
        other.execute("LOCK TABLE assistant.board_queue IN EXCLUSIVE MODE")
        if stored:
            other.execute("INSERT INTO kv (key, value) VALUES ('status_board', %s)", [stored])
        updates = [
            await begin(board, f"a{number}", "running", waiting=number + 1)
            for number, board in enumerate(boards[:2])
        ]
    await asyncio.gather(*updates)
    assert (await database.kv.get("status_board")).keys() == {"a0", "a1"}
