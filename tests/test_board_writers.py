"""Many who write the board at the same time: they share commits, and no update is lost."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from random import Random
from typing import Any

import psycopg
import pytest

from assistant_cli import StatusBoard, create_status_board
from assistant_cli.messages import Reply
from assistant_cli.store import leases
from assistant_cli.store.answering import Worker
from assistant_cli.store.database import Database
from assistant_cli.store.inbox import put_message

from .conftest import CommandLine, eventually, until_locked
from .stored_board import IDLE, blocked, events, lock_the_board, stored

# What a program of somebody else's does: report, one after the other, and say when it is done.
REPORTER = """
import asyncio, sys
from assistant_cli import StatusBoard, connect

async def main(dsn, agent, name, count):
    async with connect(dsn) as database:
        board = StatusBoard(database)
        for number in range(int(count)):
            status = ("running", "idle", "failed")[number % 3]
            await board.update(agent, {"status": status, "detail": f"{name}:{number}"})

asyncio.run(main(*sys.argv[1:]))
"""


async def test_two_boards_never_overwrite_each_other(
    database: Database, dsn: str, sql: psycopg.Connection[Any]
) -> None:
    other_database = Database(dsn)
    first, second = await create_status_board(database), StatusBoard(other_database)
    await second.update("backup", {"status": "running", "detail": "b"})
    await first.update("heartbeat", {"status": "running", "detail": "h"})
    await second.update("backup", {"status": "failed", "detail": "c"})
    assert stored(sql) == {
        "conversation": IDLE,
        "heartbeat": {"status": "running", "detail": "h"},
        "backup": {"status": "failed", "detail": "c"},
    }
    assert await first.read() == stored(sql)
    await other_database.close()


async def test_concurrent_updates_share_commits_and_none_is_lost(
    database: Database, sql: psycopg.Connection[Any]
) -> None:
    board = await create_status_board(database)
    writes = "SELECT last_value FROM assistant.revisions"
    before = sql.execute(writes).fetchone()

    async def updater(agent: str) -> None:
        for number in range(50):
            status = "running" if number % 2 else "idle"
            await board.update(agent, {"status": status, "detail": str(number)})

    agents = [f"agent-{number}" for number in range(32)]
    await asyncio.gather(*map(updater, agents))
    after = sql.execute(writes).fetchone()
    expected = [("running" if number % 2 else "idle", str(number)) for number in range(50)]
    for agent in agents:
        assert events(sql, agent) == expected
        assert stored(sql)[agent] == {"status": "running", "detail": "49"}
    assert board.get() == stored(sql)
    assert before is not None
    assert after is not None
    assert after[0] - before[0] <= 32 * 50 / 8


async def test_updates_of_one_agent_in_one_commit_keep_their_order(
    database: Database, sql: psycopg.Connection[Any]
) -> None:
    board = StatusBoard(database)
    details = [str(number) for number in range(700)]
    entries = [{"status": "running", "detail": detail} for detail in details]
    await asyncio.gather(*(board.update("backup", entry) for entry in entries))
    assert [detail for _, detail in events(sql, "backup")] == details
    assert stored(sql)["backup"]["detail"] == board.get()["backup"]["detail"] == details[-1]


async def test_a_caller_that_is_cancelled_harms_nobody(
    database: Database, dsn: str, sql: psycopg.Connection[Any]
) -> None:
    board = await create_status_board(database)
    with lock_the_board(dsn) as lock:
        cancelled = asyncio.create_task(board.update("a", {"status": "running"}))
        await blocked(sql)
        waiting = asyncio.create_task(board.update("b", {"status": "running"}))
        cancelled_while_waiting = asyncio.create_task(board.update("c", {"status": "running"}))
        await asyncio.sleep(0)
        cancelled.cancel()
        cancelled_while_waiting.cancel()
        for task in (cancelled, cancelled_while_waiting):
            with pytest.raises(asyncio.CancelledError):
                await task
        lock.rollback()
        await waiting
    await board.update("d", {"status": "running"})
    assert {"b", "d"} <= stored(sql).keys()
    assert board.get() == stored(sql)


async def test_what_is_in_memory_is_what_is_stored_whoever_writes_at_the_same_time(
    database: Database,
) -> None:
    lease = await leases.acquire(database, ["conversation", "heartbeat"])
    board = await create_status_board(database, lease)
    worker = Worker(board, "conversation")

    async def answer(number: int) -> None:
        await put_message(database, "hello", conversation=f"c{number}")
        for turn in await worker.claim("offline"):
            await worker.keep(turn, [Reply(turn.messages, "hi")])

    async def overwrite() -> None:
        await database.kv.set("status_board", {"other": {"status": "idle", "detail": None}})
        await board.repair()

    for number in range(20):
        detail = f"step {number}"
        await asyncio.gather(
            answer(number),
            board.update("heartbeat", {"status": "running", "detail": detail}),
            overwrite(),
            board.repair(),
        )
        await board.repair()
        stored = {"other": {"status": "idle", "detail": None}, **board.get()}
        assert await database.kv.get("status_board") == stored
        assert board.get() == {
            "conversation": IDLE,
            "heartbeat": {"status": "running", "detail": detail},
        }


async def test_what_is_read_is_no_older_than_what_was_written(database: Database) -> None:
    board = StatusBoard(database, await leases.acquire(database, ["build"]))
    chance = Random(1)
    for number in range(300):
        entry = {"status": "running", "detail": str(number)}
        update = asyncio.create_task(board.update("build", entry))
        await asyncio.sleep(chance.random() / 1000)
        await asyncio.gather(update, board.read())
        assert board.get()["build"] == entry


async def test_the_board_is_read_while_a_commit_is_waited_for(database: Database, dsn: str) -> None:
    board = StatusBoard(database)
    with psycopg.connect(dsn) as other:
        other.execute("LOCK TABLE assistant.board_queue IN EXCLUSIVE MODE")
        update = asyncio.create_task(board.update("build", {"status": "idle"}))
        await until_locked(dsn, 1)
        async with asyncio.timeout(5):
            assert await board.read() == {}
    await update
    assert board.get() == {"build": IDLE}


async def test_updates_of_several_processes_wait_where_a_commit_wakes_only_the_next(
    database: Database, dsn: str, sql: psycopg.Connection[Any]
) -> None:
    others = [Database(dsn) for _ in range(4)]
    waiting = (
        "SELECT FROM pg_stat_activity WHERE datname = current_database() "
        "AND wait_event_type = 'Lock' AND wait_event = 'relation'"
    )
    with psycopg.connect(dsn) as first:
        first.execute('SELECT assistant.write_board(\'[{"first": {"status": "idle"}}]\', \'{}\')')
        updates = [
            asyncio.create_task(StatusBoard(other).update(f"a{number}", {"status": "running"}))
            for number, other in enumerate(others)
        ]
        # At the row's own lock, each of them would look again whenever one commits.
        await asyncio.to_thread(eventually, lambda: sql.execute(waiting).rowcount == len(others))
    await asyncio.gather(*updates)
    assert (stored(sql) or {}).keys() == {"first", "a0", "a1", "a2", "a3"}
    for other in others:
        await other.close()


def test_sixteen_processes_report_at_once_and_nothing_is_lost(
    dsn: str, sql: psycopg.Connection[Any], assistant: CommandLine
) -> None:
    # Half of them under names of their own, half under one name.
    agents = {f"p{number}": f"p{number}" if number % 2 else "shared" for number in range(16)}
    processes = [
        subprocess.Popen([sys.executable, "-c", REPORTER, dsn, agent, name, "500"])
        for name, agent in agents.items()
    ]
    by_command = [assistant("report", "command", "running", str(n)).code for n in range(3)]
    assert [process.wait(timeout=120) for process in processes] == [0] * 16
    assert by_command == [0, 0, 0]

    board = stored(sql)
    assert board.keys() == {*agents.values(), "command"}
    assert board["command"] == {"status": "running", "detail": "2"}
    assert [detail for _, detail in events(sql, "command")] == ["0", "1", "2"]
    reported: dict[str, list[int]] = {name: [] for name in agents}
    for agent in set(agents.values()):
        said = events(sql, agent)
        assert said[-1] == (board[agent]["status"], board[agent]["detail"])
        assert board[agent]["detail"].endswith(":499")
        for _, detail in said:
            name, _, number = detail.partition(":")
            reported[name].append(int(number))
    assert all(numbers == list(range(500)) for numbers in reported.values())
