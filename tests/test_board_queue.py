"""What waits in the queue of the board: others take it along or remove it, or its writer does."""

from __future__ import annotations

import asyncio

import psycopg
import pytest

from assistant_cli import StatusBoard
from assistant_cli.errors import DatabaseUnreachableError
from assistant_cli.store import leases
from assistant_cli.store.database import Database
from assistant_cli.store.inbox import put_message

from .hosting import rows, worker_of
from .test_board_sharing import begin, events, left

WAIT = (
    "INSERT INTO assistant.board_slots (pid, agent, entry, token, at) "
    "SELECT coalesce(min(pid), -1) - 1, %s, "
    """jsonb_build_object('status', %s::text, 'detail', null), %s, """
    "clock_timestamp() - %s * interval '1 s' FROM assistant.board_slots"
)

WAITING = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'CALL%%' AND wait_event_type = 'Lock'"


async def test_entries_of_one_agent_keep_their_order_and_each_is_in_the_timeline(
    database: Database, boards: list[StatusBoard]
) -> None:
    said = ["running", "failed", "running", "idle"]
    for status in said:
        await rows(database, WAIT, "build", status, None, 0)
    await boards[0].update("other", {"status": "idle"})
    assert await events(database, "build") == said


async def test_a_batch_takes_along_what_waits(
    database: Database, boards: list[StatusBoard]
) -> None:
    await rows(database, WAIT, "build", "running", None, 0)
    await asyncio.gather(*(boards[0].update(agent, {"status": "idle"}) for agent in ("a", "b")))
    assert await events(database, "build") == ["running"]


async def test_a_turn_that_begins_takes_along_what_waits(database: Database) -> None:
    lease = await leases.acquire(database, ["conversation"])
    await put_message(database, "hello", conversation="main")
    await rows(database, WAIT, "build", "running", None, 0)
    await worker_of(database, lease).claim("offline", 1)
    assert await events(database, "build") == ["running"]


@pytest.mark.parametrize("several", [False, True])
async def test_what_waits_for_the_same_agent_is_not_written_by_others_before_or_after(
    database: Database, boards: list[StatusBoard], several: bool
) -> None:
    # It may be older, and its writer gone: who still wants it begins again.
    await rows(database, WAIT, "build", "running", None, 0)
    said = ["failed", "idle"] if several else ["idle"]
    await asyncio.gather(*(boards[0].update("build", {"status": status}) for status in said))
    assert await events(database, "build") == said
    assert await left(database) == []


async def test_a_turn_that_begins_removes_what_waits_for_its_worker(database: Database) -> None:
    lease = await leases.acquire(database, ["conversation"])
    await put_message(database, "hello", conversation="main")
    await rows(database, WAIT, "conversation", "failed", lease.token, 0)
    await worker_of(database, lease).claim("offline", 1)
    assert await events(database, "conversation") == ["running"]
    assert await left(database) == []


@pytest.mark.parametrize("waits_for", ["queue", "lease", "commit"])
async def test_what_its_writer_gave_up_is_not_written_after_what_is_newer(
    database: Database, dsn: str, boards: list[StatusBoard], waits_for: str
) -> None:
    looking = boards[0].database
    board = StatusBoard(database, await leases.acquire(database, ["build"]))
    lease = board.lease
    assert lease is not None
    with psycopg.connect(dsn) as other, psycopg.connect(dsn) as reader:
        if waits_for == "lease":
            other.execute("SELECT FROM assistant.leases FOR UPDATE")
        else:
            other.execute("LOCK TABLE assistant.board_queue IN EXCLUSIVE MODE")
        if waits_for == "commit":
            reader.execute("SELECT pg_advisory_xact_lock(7238114906)")
        call = "CALL assistant.put_entry('build', '{\"status\": \"running\"}', %s, NULL)"
        with pytest.raises(DatabaseUnreachableError):  # noqa: PT012 (whoever lends it gives up)
            async with database.connection(patience=0.2) as connection:
                older = connection.info.backend_pid
                await connection.execute(call, [lease.token])
        newer = asyncio.create_task(board.update("build", {"status": "failed"}))
        # The server would notice by itself within two seconds.
        async with asyncio.timeout(1.5):
            while older in await rows(looking, WAITING):
                pass
        other.commit()
        await newer
    assert (await events(database, "build"))[-1] == "failed"


@pytest.mark.parametrize("waits_for", ["queue", "row"])
async def test_who_gives_up_takes_back_what_waits(
    database: Database, dsn: str, boards: list[StatusBoard], waits_for: str
) -> None:
    await boards[0].update("a", {"status": "idle"})
    with psycopg.connect(dsn) as other, psycopg.connect(dsn) as reader:
        if waits_for == "queue":
            other.execute("LOCK TABLE assistant.board_queue IN EXCLUSIVE MODE")
        else:
            other.execute("SELECT FROM kv FOR UPDATE")
        reader.execute("SELECT pg_advisory_xact_lock(7238114906)")
        (update,) = await begin({"build": boards[1]})
        update.cancel()
        with pytest.raises(asyncio.CancelledError):
            await update
    await boards[0].update("a", {"status": "running"})
    assert await events(database, "build") == []
    assert await left(database) == []


async def test_who_gives_up_does_not_wait_for_whoever_takes_it_along(
    database: Database, dsn: str, boards: list[StatusBoard]
) -> None:
    with psycopg.connect(dsn) as other, psycopg.connect(dsn) as reader:
        other.execute("LOCK TABLE assistant.board_queue IN EXCLUSIVE MODE")
        reader.execute("SELECT pg_advisory_xact_lock(7238114906)")
        (update,) = await begin({"build": boards[1]})
        other.execute("UPDATE assistant.board_slots SET written = true")
        update.cancel()
        async with asyncio.timeout(1.5):
            await asyncio.wait([update])


async def test_what_waits_of_a_process_that_is_gone_is_not_written(
    database: Database, boards: list[StatusBoard]
) -> None:
    await rows(database, WAIT, "build", "running", None, 2)
    await boards[0].update("a", {"status": "running"})
    assert await events(database, "build") == []
    assert await left(database) == []


async def test_what_was_given_up_without_a_lease_does_not_come_after_one(
    database: Database, dsn: str, boards: list[StatusBoard]
) -> None:
    await rows(database, WAIT, "build", "running", None, 0)
    lease = await leases.acquire(database, ["build"])
    await rows(database, WAIT, "build", "failed", lease.token, 0)
    await boards[0].update("a", {"status": "idle"})
    await rows(database, "DELETE FROM assistant.leases")
    await rows(database, WAIT, "b", "idle", None, 0)
    await boards[0].update("a", {"status": "running"})
    assert await events(database, "build") == ["failed"]


async def test_what_takes_the_place_of_an_entry_that_is_taken_along_is_judged_by_itself(
    database: Database, dsn: str, boards: list[StatusBoard]
) -> None:
    await leases.acquire(database, ["build"])
    await rows(database, WAIT, "a", "running", None, 0)
    with psycopg.connect(dsn) as again:
        # As a backend does whose call was broken off while it waited.
        again.execute("UPDATE assistant.board_slots SET place = DEFAULT, agent = 'build'")
        (update,) = await begin({"b": boards[0]})
    await update
    assert await events(database, "build") == []


@pytest.mark.parametrize("token", [None, 1])
async def test_what_has_waited_for_long_is_left_to_its_writer(
    database: Database, boards: list[StatusBoard], token: int | None
) -> None:
    # It was told that it failed, or is gone, or will see that its entry is.
    await rows(database, WAIT, "build", "running", token, 21)
    await boards[0].update("a", {"status": "running"})
    assert await events(database, "build") == []
    assert await left(database) == []


async def test_a_lease_that_was_renewed_and_is_given_back_is_not_waited_for(
    database: Database, dsn: str
) -> None:
    lease = await leases.acquire(database, ["build"])
    await rows(database, WAIT, "build", "running", lease.token, 0)
    with psycopg.connect(dsn) as writer, psycopg.connect(dsn) as other:
        # As if its statement had begun before the renewal.
        writer.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        writer.execute("SET LOCAL statement_timeout = '5s'")
        writer.execute("SELECT FROM assistant.leases")
        async with database.connection() as connection:
            await leases.renew(connection, lease)
        other.execute("DELETE FROM assistant.leases")
        held = writer.execute("SELECT assistant.lock_leases_of_slots()").fetchone()
    assert held == ({},)


async def test_others_may_rely_on_a_commit_that_takes_them_along(
    database: Database, dsn: str
) -> None:
    with psycopg.connect(dsn, options="-c synchronous_commit=off") as writer:
        write = 'SELECT assistant.write_board(\'[{"a": {"status": "idle"}}]\', \'{}\')'
        for waits, setting in ((False, "off"), (True, "local")):
            if waits:
                await rows(database, WAIT, "build", "running", None, 0)
            writer.execute(write)
            assert writer.execute("SHOW synchronous_commit").fetchone() == (setting,)
            writer.commit()


async def test_what_those_who_no_longer_wait_had_used_is_removed(
    database: Database, boards: list[StatusBoard]
) -> None:
    for age in (1, 3):
        await rows(database, WAIT, f"a{age}", "running", None, age)
    await rows(database, "UPDATE assistant.board_slots SET written = true, collected = true")
    await rows(database, WAIT, "build", "running", None, 0)
    await boards[0].update("b", {"status": "running"})
    assert await rows(database, "SELECT agent FROM assistant.board_slots WHERE collected") == ["a1"]
