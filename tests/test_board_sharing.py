"""Updates of the board by processes that wait for each other share commits."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from assistant_cli import StatusBoard
from assistant_cli.errors import ConflictError, DatabaseUnreachableError, LeaseLostError
from assistant_cli.store import leases
from assistant_cli.store.database import Database

from .conftest import until_locked
from .hosting import rows


@contextmanager
def commit_under_way(dsn: str) -> Iterator[None]:
    """What another updates, who has not committed it before the block ends."""
    with psycopg.connect(dsn) as other:
        other.execute('SELECT assistant.write_board(\'[{"other": {"status": "idle"}}]\', \'{}\')')
        yield


async def begin(updates: dict[str, StatusBoard]) -> list[asyncio.Task[None]]:
    """Updates, each of an agent, that wait: the first for the queue, the others in slots."""
    begun: list[asyncio.Task[None]] = []
    for agent, board in updates.items():
        begun.append(asyncio.create_task(board.update(agent, {"status": "running"})))
        await until_locked(board.database.dsn, len(begun))
    return begun


async def revision(database: Database) -> int:
    """How many writes there were until the last of the board."""
    (number,) = await rows(database, "SELECT revision FROM kv WHERE key = 'status_board'")
    return int(number)


async def events(database: Database, agent: str) -> list[Any]:
    query = "SELECT status FROM assistant.board_events WHERE agent = %s ORDER BY id"
    return await rows(database, query, agent)


async def left(database: Database) -> list[Any]:
    return await rows(database, "SELECT agent FROM assistant.board_slots WHERE NOT collected")


async def test_those_who_wait_for_a_commit_share_the_next(
    database: Database, dsn: str, boards: list[StatusBoard]
) -> None:
    agents = {f"a{number}": board for number, board in enumerate(boards)}
    with commit_under_way(dsn):
        updates = await begin(agents)
    await asyncio.gather(*updates)
    assert (await database.kv.get("status_board")).keys() == {"other", *agents}
    # One write of the other, one of all who wait, and in the same commit that of the first.
    assert await revision(database) == 3
    commits = "SELECT count(DISTINCT xmin::text) FROM assistant.board_events"
    assert await rows(database, commits) == [2]
    assert [await events(database, agent) for agent in agents] == [["running"]] * len(agents)
    assert await left(database) == []


async def test_an_update_alone_is_one_write(database: Database, boards: list[StatusBoard]) -> None:
    for status in ("running", "idle"):
        await boards[0].update("build", {"status": status})
    assert await revision(database) == 2
    sequence = "SELECT is_called FROM assistant.board_slots_place_seq"
    assert await rows(database, sequence) == [False]


async def test_who_lost_the_agent_while_it_waited_is_refused_and_the_others_are_not(
    database: Database, dsn: str, boards: list[StatusBoard]
) -> None:
    boards[1].lease = await leases.acquire(database, ["build"])
    with commit_under_way(dsn):
        first, refused, last = await begin(dict(zip(("a", "build", "b"), boards, strict=False)))
        await rows(database, "UPDATE assistant.leases SET token = nextval('assistant.tokens')")
    await asyncio.gather(first, last)
    with pytest.raises(LeaseLostError):
        await refused
    assert await events(database, "build") == []
    assert (await database.kv.get("status_board")).keys() == {"other", "a", "b"}
    assert await left(database) == []


async def test_who_waits_although_nobody_writes_is_written_or_refused_at_once(
    database: Database, dsn: str, boards: list[StatusBoard]
) -> None:
    lease = await leases.acquire(database, ["build"])
    boards[1].lease = lease
    boards[2].lease = replace(lease, token=lease.token - 1)
    with psycopg.connect(dsn) as reader:
        # Anybody can hold the lock that is asked for a hint.
        reader.execute("SELECT pg_advisory_xact_lock(7238114906)")
        await boards[0].update("a", {"status": "running"})
        await boards[1].update("build", {"status": "running"})
        with pytest.raises(LeaseLostError):
            await boards[2].update("build", {"status": "idle"})
    assert await events(database, "build") == ["running"]
    assert await left(database) == []


async def test_the_holder_is_refused_nothing_while_it_waits(
    database: Database, dsn: str, boards: list[StatusBoard]
) -> None:
    boards[1].lease = await leases.acquire(database, ["build"])
    with commit_under_way(dsn):
        updates = await begin({"a": boards[0], "build": boards[1]})
    await asyncio.gather(*updates)
    assert await events(database, "build") == ["running"]


async def test_nobody_waits_for_a_lease_with_the_queue_locked(
    database: Database, dsn: str, boards: list[StatusBoard]
) -> None:
    boards[1].lease = await leases.acquire(database, ["build"])
    with psycopg.connect(dsn) as taker:
        with commit_under_way(dsn):
            first, second = await begin({"a": boards[0], "build": boards[1]})
            # Who gives an agent back locks its lease, and then waits for the queue.
            taker.execute("DELETE FROM assistant.leases")
        await first
        taker.execute('SELECT assistant.write_board(\'[{"build": {"status": "idle"}}]\', \'{}\')')
    with pytest.raises(LeaseLostError):
        await second
    assert (await database.kv.get("status_board"))["build"]["status"] == "idle"
    assert await left(database) == []


async def test_who_waits_sees_what_was_written_meanwhile_whatever_the_default(
    database: Database, dsn: str
) -> None:
    options = "-c default_transaction_isolation=serializable"
    careful = Database(make_conninfo(dsn, options=options))
    with commit_under_way(dsn):
        updates = await begin({"a": StatusBoard(careful), "b": StatusBoard(database)})
    await asyncio.gather(*updates)
    await careful.close()
    assert (await database.kv.get("status_board")).keys() == {"other", "a", "b"}


async def test_who_finds_its_entry_gone_begins_again(
    database: Database, dsn: str, boards: list[StatusBoard]
) -> None:
    with commit_under_way(dsn):
        first, update = await begin({"a": boards[0], "build": boards[1]})
        assert await rows(database, "DELETE FROM assistant.board_slots RETURNING agent") == [
            "build"
        ]
    await asyncio.gather(first, update)
    assert await events(database, "build") == ["running"]


async def test_those_who_wait_again_and_again_need_no_more_room(
    database: Database, boards: list[StatusBoard]
) -> None:
    for number in range(600):
        entry = {"status": "running", "detail": f"step {number}"}
        await asyncio.gather(*(board.update(f"a{n}", entry) for n, board in enumerate(boards)))
    waited = "SELECT last_value FROM assistant.board_slots_place_seq"
    assert (await rows(database, waited))[0] > 200
    assert (await rows(database, "SELECT count(*) FROM assistant.board_slots"))[0] <= len(boards)
    size = (
        "SELECT pg_table_size('assistant.board_slots') + pg_indexes_size('assistant.board_slots')"
    )
    assert (await rows(database, size))[0] <= 100_000


async def test_who_waits_once_more_is_the_last_and_has_just_come(
    database: Database, dsn: str, boards: list[StatusBoard]
) -> None:
    with commit_under_way(dsn):
        updates = await begin({"a": boards[0], "b": boards[1]})
    await asyncio.gather(*updates)
    await rows(database, "UPDATE assistant.board_slots SET at = at - interval '1 hour'")
    with commit_under_way(dsn):
        updates = await begin({"a": boards[0], "build": boards[2]})
        updates.append(asyncio.create_task(boards[1].update("build", {"status": "idle"})))
        await until_locked(dsn, 3)
    await asyncio.gather(*updates)
    assert await events(database, "build") == ["running", "idle"]
    commits = "SELECT count(DISTINCT xmin::text) FROM assistant.board_events WHERE agent = 'build'"
    assert await rows(database, commits) == [1]


async def test_what_the_timeline_cannot_hold_fails_alone(
    database: Database, dsn: str, boards: list[StatusBoard]
) -> None:
    call = "CALL assistant.put_entry(repeat('name ', 100), '{}', NULL, NULL)"
    with commit_under_way(dsn):
        (update,) = await begin({"build": boards[0]})
        with pytest.raises(ConflictError):
            await rows(database, call)
    await update
    assert await events(database, "build") == ["running"]


async def test_writers_that_die_while_they_wait_harm_nobody(
    database: Database, dsn: str, boards: list[StatusBoard]
) -> None:
    with commit_under_way(dsn):
        lost = await begin({"lost": boards[0], "lost-too": boards[1]})
        query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        await rows(database, query + "WHERE wait_event = 'relation'")
        for update in lost:
            with pytest.raises(DatabaseUnreachableError):
                await update
        updates = await begin({"a": boards[2], "b": boards[3]})
    await asyncio.gather(*updates)
    assert [await events(database, agent) for agent in ("a", "b")] == [["running"], ["running"]]


@pytest.mark.parametrize("stored", ["[1]", "null", None])
async def test_where_no_board_is_stored_those_who_wait_make_a_new_one(
    database: Database, dsn: str, boards: list[StatusBoard], stored: str | None
) -> None:
    with psycopg.connect(dsn) as other:
        other.execute("LOCK TABLE assistant.board_queue IN EXCLUSIVE MODE")
        if stored:
            other.execute("INSERT INTO kv (key, value) VALUES ('status_board', %s)", [stored])
        updates = await begin({"a0": boards[0], "a1": boards[1]})
    await asyncio.gather(*updates)
    assert (await database.kv.get("status_board")).keys() == {"a0", "a1"}
