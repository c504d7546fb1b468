"""The status board: what is on it is committed, nothing on it is lost, its history is whole."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from typing import Any

import psycopg
import pytest

from assistant_cli import StatusBoard, create_status_board
from assistant_cli.errors import BadDataError, ConflictError, DatabaseUnreachableError
from assistant_cli.messages import Reply
from assistant_cli.store import leases
from assistant_cli.store.answering import Worker
from assistant_cli.store.database import Database
from assistant_cli.store.inbox import put_message

from .conftest import CommandLine, eventually

IDLE = {"status": "idle", "detail": None}

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


def stored(sql: psycopg.Connection[Any]) -> Any:
    row = sql.execute("SELECT value FROM kv WHERE key = 'status_board'").fetchone()
    return row and row[0]


def store(sql: psycopg.Connection[Any], board: Any) -> None:
    sql.execute(
        "INSERT INTO kv (key, value) VALUES ('status_board', %s) "
        "ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        (json.dumps(board),),
    )


def events(sql: psycopg.Connection[Any], agent: str) -> list[tuple[Any, ...]]:
    query = "SELECT status, detail FROM assistant.board_events WHERE agent = %s ORDER BY id"
    return sql.execute(query, (agent,)).fetchall()


def waiters(sql: psycopg.Connection[Any]) -> list[int]:
    query = (
        "SELECT pid FROM pg_stat_activity "
        "WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    return [row[0] for row in sql.execute(query)]


async def blocked(sql: psycopg.Connection[Any]) -> int:
    """The backend that waits for a lock, once one does."""
    await asyncio.to_thread(eventually, lambda: waiters(sql), "a backend that waits")
    return waiters(sql)[0]


def lock_the_board(dsn: str) -> psycopg.Connection[Any]:
    connection = psycopg.connect(dsn)
    connection.execute("SELECT 1 FROM kv WHERE key = 'status_board' FOR UPDATE")
    return connection


async def test_a_new_board_has_both_agents_idle_in_the_documented_shape(
    database: Database, sql: psycopg.Connection[Any]
) -> None:
    board = await create_status_board(database)
    shape = {"conversation": IDLE, "heartbeat": IDLE}
    assert stored(sql) == shape
    assert board.get() == shape
    assert events(sql, "heartbeat") == [("idle", None)]


async def test_get_returns_a_copy(database: Database) -> None:
    board = await create_status_board(database)
    board.get()["heartbeat"]["status"] = "failed"
    board.get().clear()
    assert board.get()["heartbeat"] == IDLE


async def test_an_update_that_returned_is_seen_by_others(
    database: Database, sql: psycopg.Connection[Any]
) -> None:
    board = await create_status_board(database)
    for number in range(20):
        entry = {"status": "running", "detail": f"step {number}"}
        await board.update("heartbeat", entry)
        assert stored(sql)["heartbeat"] == entry == board.get()["heartbeat"]


async def test_memory_changes_only_after_the_commit(
    database: Database, dsn: str, sql: psycopg.Connection[Any]
) -> None:
    board = await create_status_board(database)
    running = {"status": "running", "detail": "a"}
    with lock_the_board(dsn) as lock:
        update = asyncio.create_task(board.update("heartbeat", running))
        await blocked(sql)
        assert board.get()["heartbeat"] == IDLE
        assert not update.done()
        lock.rollback()
        await update
    assert board.get()["heartbeat"] == stored(sql)["heartbeat"] == running


async def test_format_says_it_in_lines(database: Database) -> None:
    board = await create_status_board(database)
    await board.update("heartbeat", {"status": "running", "detail": "writing a recipe"})
    assert board.format() == "conversation: idle\nheartbeat: running — writing a recipe"


async def test_a_detail_cannot_look_like_another_agents_entry(database: Database) -> None:
    board = await create_status_board(database)
    await board.update("heartbeat", {"status": "idle", "detail": "x\nconversation: failed"})
    assert board.format() == "conversation: idle\nheartbeat: idle — x conversation: failed"


async def test_a_missing_detail_is_none(database: Database, sql: psycopg.Connection[Any]) -> None:
    await StatusBoard(database).update("backup", {"status": "idle"})
    assert stored(sql) == {"backup": IDLE}


@pytest.mark.parametrize(
    ("agent", "entry"),
    [
        ("heartbeat", {"status": "busy"}),
        ("heartbeat", {"status": None}),
        ("heartbeat", {"detail": "no status"}),
        ("heartbeat", {}),
        ("heartbeat", {"status": "idle", "since": "now"}),
        ("heartbeat", {"status": "idle", "detail": 5}),
        ("heartbeat", {"status": "idle", "detail": ["a"]}),
        ("heartbeat", {"status": "idle", "detail": "a\x00b"}),
        ("heartbeat", {"status": "idle", "detail": "\ud800"}),
        ("heartbeat", {"status": "idle", "detail": "ä" * 1001}),
        ("", IDLE),
        ("two words", IDLE),
        ("\x1b[31m", IDLE),
        ("-n", IDLE),
        ("x" * 101, IDLE),
    ],
)
async def test_what_is_no_entry_is_refused_and_nothing_is_written(
    database: Database, sql: psycopg.Connection[Any], agent: str, entry: dict[str, Any]
) -> None:
    board = await create_status_board(database)
    with pytest.raises(BadDataError):
        await board.update(agent, entry)
    assert stored(sql) == board.get() == {"conversation": IDLE, "heartbeat": IDLE}


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


async def test_an_update_whose_connection_is_lost_fails_and_the_next_one_works(
    database: Database, dsn: str, sql: psycopg.Connection[Any]
) -> None:
    board = await create_status_board(database)
    with lock_the_board(dsn) as lock:
        update = asyncio.create_task(board.update("heartbeat", {"status": "running"}))
        sql.execute("SELECT pg_terminate_backend(%s)", (await blocked(sql),))
        with pytest.raises(DatabaseUnreachableError):
            await update
        lock.rollback()
    assert board.get()["heartbeat"] == IDLE == stored(sql)["heartbeat"]
    await board.update("heartbeat", {"status": "failed"})
    assert stored(sql)["heartbeat"]["status"] == "failed"


async def test_an_idle_connection_that_the_server_closed_is_not_used(
    database: Database, sql: psycopg.Connection[Any]
) -> None:
    board = await create_status_board(database)
    sql.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    await board.update("heartbeat", {"status": "running"})
    assert stored(sql)["heartbeat"]["status"] == "running"


@pytest.mark.parametrize("garbage", [5, ["a"], "text", None, {"conversation": 7}, {"x": {}}])
async def test_garbage_in_place_of_the_board_is_survived(
    database: Database, sql: psycopg.Connection[Any], assistant: CommandLine, garbage: Any
) -> None:
    store(sql, garbage)
    assert StatusBoard(database).format() == ""
    board = StatusBoard(database)
    await board.read()
    board.format()
    seen = assistant("status", "--json")
    assert (seen.code, seen.err) == (0, "")
    await create_status_board(database)
    assert {name: stored(sql)[name] for name in ("conversation", "heartbeat")} == {
        "conversation": IDLE,
        "heartbeat": IDLE,
    }


async def test_a_board_that_expired_is_a_new_one(
    database: Database, sql: psycopg.Connection[Any]
) -> None:
    store(sql, {"old": IDLE})
    sql.execute("UPDATE kv SET expires_at = now() + '1 hour'")
    await StatusBoard(database).update("new", {"status": "idle"})
    assert sql.execute("SELECT expires_at FROM kv").fetchone() == (None,)


async def test_since_changes_with_the_status_and_not_with_the_detail(
    database: Database, sql: psycopg.Connection[Any]
) -> None:
    board = StatusBoard(database)

    async def since(status: str, detail: str | None) -> Any:
        await board.update("backup", {"status": status, "detail": detail})
        row = sql.execute("SELECT since, updated_at FROM assistant.agent_status").fetchone()
        assert row is not None
        assert row[0] <= row[1]
        return row[0]

    began = await since("running", "a")
    assert await since("running", "b") == began
    assert await since("running", None) == began
    ended = await since("idle", None)
    assert ended > began
    assert await since("running", None) > ended


async def test_an_agent_that_comes_back_on_the_board_as_it_was_has_been_so_since_then(
    database: Database, sql: psycopg.Connection[Any]
) -> None:
    board = StatusBoard(database)
    for detail in ("a", "b"):
        await board.update("backup", {"status": "running", "detail": detail})
    query = "SELECT since, updated_at FROM assistant.agent_status"
    was = sql.execute(query).fetchone()
    sql.execute("DELETE FROM kv WHERE key = 'status_board'")
    await board.update("backup", {"status": "running", "detail": "b"})
    assert sql.execute(query).fetchone() == was
    sql.execute("UPDATE kv SET value = '{}'")
    await board.update("backup", {"status": "running", "detail": "c"})
    since = sql.execute("SELECT since FROM assistant.agent_status").fetchone()
    assert was is not None
    assert since == was[:1]
    assert events(sql, "backup") == [("running", detail) for detail in ("a", "b", "c")]


async def test_a_status_from_before_events_were_recorded_is_known_since_the_first_of_them(
    database: Database, sql: psycopg.Connection[Any]
) -> None:
    store(sql, {"backup": {"status": "running", "detail": "a"}})
    sql.execute("TRUNCATE assistant.board_events")
    query = "SELECT since FROM assistant.agent_status"
    assert sql.execute(query).fetchone() == (None,)
    for detail in ("b", "c"):
        await StatusBoard(database).update("backup", {"status": "running", "detail": detail})
    first = sql.execute("SELECT min(at) FROM assistant.board_events").fetchone()
    assert sql.execute(query).fetchone() == first


async def test_an_update_that_says_the_same_again_is_no_transition(
    database: Database, sql: psycopg.Connection[Any]
) -> None:
    board = StatusBoard(database)
    entry = {"status": "running", "detail": "a"}
    for _ in range(3):
        await board.update("backup", entry)
    await asyncio.gather(*(board.update("backup", entry) for _ in range(10)))
    assert events(sql, "backup") == [("running", "a")]


async def test_transitions_that_plain_sql_makes_are_recorded(
    database: Database, sql: psycopg.Connection[Any]
) -> None:
    store(sql, {"a": {"status": "running", "detail": "1"}, "b": IDLE})
    store(sql, {"a": {"status": "running", "detail": "2"}, "b": IDLE})
    await StatusBoard(database).update("a", {"status": "failed"})
    store(sql, {"a": {"status": "failed", "detail": None}, "b": {"status": "running"}})
    assert events(sql, "a") == [("running", "1"), ("running", "2"), ("failed", None)]
    assert events(sql, "b") == [("idle", None), ("running", None)]


async def test_the_view_has_a_row_an_agent(
    database: Database, sql: psycopg.Connection[Any]
) -> None:
    board = await create_status_board(database)
    await board.update("backup", {"status": "running", "detail": "disk"})
    lease = await leases.acquire(database, ["heartbeat"])
    await leases.acquire(database, ["conversation"])
    sql.execute(
        "UPDATE assistant.leases SET expires_at = now() - interval '1 second', host = 'gone', "
        "pid = 7 WHERE agent = 'conversation'"
    )
    rows = sql.execute(
        "SELECT agent, status, detail, since <= now(), live, stale, host, pid "
        "FROM assistant.agent_status ORDER BY agent"
    ).fetchall()
    (holder,) = await leases.find_holders(database, lease.agents)
    assert rows == [
        ("backup", "running", "disk", True, False, False, None, None),
        ("conversation", "idle", None, True, False, True, "gone", 7),
        ("heartbeat", "idle", None, True, True, False, holder.host, holder.pid),
    ]


async def test_an_agent_that_is_silent_or_new_costs_the_same_however_much_others_have_said(
    database: Database, sql: psycopg.Connection[Any]
) -> None:
    board = await create_status_board(database)
    await board.update("silent", IDLE)
    sql.execute(
        "INSERT INTO assistant.board_events (agent, status, detail, since) "
        "SELECT 'conversation', 'running', n::text, now() FROM generate_series(1, 50000) n"
    )
    sql.execute("ANALYZE assistant.board_events")

    def events_read_by(query: str) -> int:
        with sql.transaction():
            sql.execute(query)
            row = sql.execute(
                "SELECT seq_tup_read + coalesce(idx_tup_fetch, 0) "
                "FROM pg_stat_xact_user_tables WHERE relname = 'board_events'"
            ).fetchone()
        assert row is not None
        return int(row[0])

    board_update = 'UPDATE kv SET value = value || \'{{"{}": {{"status": "failed"}}}}\''
    assert events_read_by(board_update.format("conversation")) == 0
    assert events_read_by(board_update.format("silent")) == 0
    assert events_read_by(board_update.format("new")) < 20
    assert events_read_by("SELECT * FROM assistant.agent_status") < 20


async def test_a_new_board_refuses_while_a_running_process_holds_an_agent(
    database: Database, dsn: str, sql: psycopg.Connection[Any]
) -> None:
    await leases.acquire(database, ["heartbeat"])
    with pytest.raises(ConflictError, match=r"heartbeat is held by host .*, pid "):
        await create_status_board(database)
    assert "heartbeat" not in (stored(sql) or {})


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


def test_a_program_of_the_version_before_may_go_on_while_this_one_migrates(
    sql: psycopg.Connection[Any], dsn: str
) -> None:
    del dsn
    entry = '{"agent": "build", "status": "running", "detail": "old", "token": null}'
    refused = sql.execute("SELECT assistant.update_board(%s)", [f"[{entry}]"]).fetchone()
    assert refused == ([],)
    assert stored(sql) == {"build": {"status": "running", "detail": "old"}}


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


async def test_a_board_that_python_cannot_read_is_none(database: Database) -> None:
    async with database.connection() as connection:
        await connection.execute(
            "INSERT INTO kv (key, value) VALUES ('status_board', '{\"x\": 1e5000}')"
        )
    board = await create_status_board(database)
    assert board.get().keys() == {"conversation", "heartbeat"}
