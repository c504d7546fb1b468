"""Leases and their tokens: one holder an agent, and no writing for it by anybody else."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from assistant_cli import StatusBoard, create_status_board
from assistant_cli.errors import ConflictError, DatabaseUnreachableError, LeaseLostError
from assistant_cli.process_identity import ProcessIdentity, known_dead, own_identity
from assistant_cli.store import leases
from assistant_cli.store.database import Database
from assistant_cli.store.leases import Lease

from .conftest import CommandLine
from .stored_board import blocked

PROJECT = Path(__file__).resolve().parent.parent
RUNNING = {"status": "running", "detail": None}

HOLDER = """
import asyncio, sys
from assistant_cli import connect
from assistant_cli.store import leases

async def main(dsn, *agents):
    async with connect(dsn) as database:
        lease = await leases.acquire(database, agents)
        print(lease.token, flush=True)
        sys.stdin.read()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
def holder(dsn: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the agent `a`."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, dsn, "a"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip().isdigit()
        yield process
        process.kill()


def lapse(sql: psycopg.Connection[Any]) -> None:
    sql.execute("UPDATE assistant.leases SET expires_at = clock_timestamp() - interval '1 ms'")


def leased(sql: psycopg.Connection[Any]) -> dict[str, int]:
    return dict(sql.execute("SELECT agent, token FROM assistant.leases").fetchall())


def written(sql: psycopg.Connection[Any]) -> tuple[Any, Any]:
    """Everything an update of the board writes."""
    board = sql.execute("SELECT value, revision FROM kv WHERE key = 'status_board'").fetchone()
    return board, sql.execute("SELECT max(id), count(*) FROM assistant.board_events").fetchone()


async def test_a_writer_whose_lease_was_taken_over_is_refused_and_writes_nothing(
    database: Database, sql: psycopg.Connection[Any]
) -> None:
    lease = await leases.acquire(database, ["a", "b"])
    board = await create_status_board(database, lease)
    lapse(sql)
    await leases.acquire(database, ["b"])
    before = written(sql)
    with pytest.raises(LeaseLostError, match="no longer holds b"):
        await board.update("b", RUNNING)
    assert written(sql) == before
    assert board.get()["b"]["status"] == "idle"


async def test_a_writer_whose_lease_was_released_is_refused(
    database: Database, sql: psycopg.Connection[Any]
) -> None:
    lease = await leases.acquire(database, ["a"])
    board = await create_status_board(database, lease)
    await leases.release(database, lease)
    before = written(sql)
    with pytest.raises(LeaseLostError):
        await board.update("a", RUNNING)
    assert written(sql) == before


async def test_a_writer_whose_lease_lapsed_is_refused_until_it_is_renewed(
    database: Database, sql: psycopg.Connection[Any]
) -> None:
    lease = await leases.acquire(database, ["a"])
    board = await create_status_board(database, lease)
    lapse(sql)
    before = written(sql)
    with pytest.raises(DatabaseUnreachableError, match="lapsed"):
        await board.update("a", RUNNING)
    assert written(sql) == before
    async with database.connection() as connection:
        await leases.renew(connection, lease)
    await board.update("a", RUNNING)
    assert board.get()["a"] == RUNNING


async def test_in_a_shared_commit_only_the_refused_update_fails(
    database: Database, sql: psycopg.Connection[Any]
) -> None:
    await leases.acquire(database, ["a"])
    board = StatusBoard(database)
    results = await asyncio.gather(
        *(board.update(agent, RUNNING) for agent in ("first", "a", "b", "a", "c")),
        return_exceptions=True,
    )
    assert [type(result) for result in results] == [
        type(None),
        ConflictError,
        type(None),
        ConflictError,
        type(None),
    ]
    assert board.get() == dict.fromkeys(("first", "b", "c"), RUNNING)


async def test_without_a_lease_an_agent_that_is_held_is_refused_and_its_holder_named(
    database: Database, sql: psycopg.Connection[Any]
) -> None:
    await leases.acquire(database, ["a"])
    identity = own_identity()
    before = written(sql)
    holder = f"host {identity.host}, pid {identity.pid}, since "
    with pytest.raises(ConflictError, match=holder) as refusal:
        await StatusBoard(database).update("a", RUNNING)
    assert not isinstance(refusal.value, LeaseLostError)
    assert written(sql) == before


async def test_without_a_lease_an_agent_whose_lease_lapsed_is_free(
    database: Database, sql: psycopg.Connection[Any]
) -> None:
    await leases.acquire(database, ["a"])
    lapse(sql)
    await StatusBoard(database).update("a", RUNNING)


async def test_an_attempt_at_a_lease_that_is_held_waits_for_no_lock(
    database: Database, sql: psycopg.Connection[Any]
) -> None:
    await leases.acquire(database, ["a"])
    with sql.transaction():
        sql.execute("SELECT FROM assistant.leases FOR UPDATE")
        async with asyncio.timeout(5):
            with pytest.raises(ConflictError, match="already held"):
                await leases.acquire(database, ["a"])


async def test_a_lease_given_before_the_clock_was_set_back_is_renewed_or_taken_over(
    database: Database, sql: psycopg.Connection[Any]
) -> None:
    await create_status_board(database, await leases.acquire(database, ["b"]))
    set_back = "UPDATE assistant.leases SET expires_at = expires_at + interval '1 hour'"
    shown = "SELECT live, stale FROM assistant.agent_status"
    sql.execute(set_back)
    assert sql.execute(shown).fetchall() == [(False, True)]
    taken = await leases.acquire(database, ["b"])
    assert sql.execute(shown).fetchall() == [(True, False)]
    sql.execute(set_back)
    async with database.connection() as connection:
        await leases.renew(connection, taken)
    assert sql.execute(shown).fetchall() == [(True, False)]


async def test_a_take_over_waits_for_the_transaction_of_a_writer_and_a_renewal_does_not(
    database: Database, sql: psycopg.Connection[Any]
) -> None:
    lease = await leases.acquire(database, ["a"])
    async with database.transaction() as writer:
        await leases.guard(writer, "a", lease.token)
        async with asyncio.timeout(10), database.connection() as other:
            await leases.renew(other, lease)
        lapse(sql)
        taking_over = asyncio.create_task(leases.acquire(database, ["a"]))
        await blocked(sql)
        assert leased(sql) == {"a": lease.token}
    assert (await taking_over).token > lease.token


async def test_guard_tells_a_lost_lease_from_a_lapsed_one(
    database: Database, sql: psycopg.Connection[Any]
) -> None:
    lease = await leases.acquire(database, ["a"])
    lapse(sql)
    async with database.transaction() as connection:
        with pytest.raises(DatabaseUnreachableError, match="lapsed"):
            await leases.guard(connection, "a", lease.token)
    later = await leases.acquire(database, ["a"])
    async with database.transaction() as connection:
        await leases.guard(connection, "a", later.token)
        for agent, token in (("a", lease.token), ("nobody's", lease.token)):
            with pytest.raises(LeaseLostError):
                await leases.guard(connection, agent, token)


async def test_tokens_grow_with_every_holder(
    database: Database, sql: psycopg.Connection[Any]
) -> None:
    tokens = []
    for agents in (["a"], ["b"], ["a", "c"], ["c"], ["a"]):
        lease = await leases.acquire(database, agents)
        assert leased(sql).items() >= dict.fromkeys(agents, lease.token).items()
        tokens.append(lease.token)
        lapse(sql)
        if agents == ["b"]:
            await leases.release(database, lease)
    assert tokens == sorted(set(tokens))


async def test_several_agents_are_taken_all_or_none(
    database: Database, sql: psycopg.Connection[Any]
) -> None:
    held = await leases.acquire(database, ["b"])
    with pytest.raises(ConflictError, match="b is already held by host"):
        await leases.acquire(database, ["a", "b"])
    assert leased(sql) == {"b": held.token}
    await leases.release(database, held)
    await leases.acquire(database, ["a", "b"])
    assert leased(sql).keys() == {"a", "b"}


async def test_of_many_that_want_it_at_once_one_gets_it(
    database: Database, sql: psycopg.Connection[Any]
) -> None:
    attempts = (
        leases.acquire(database, ["a", "b"] if number % 2 else ["b", "a"]) for number in range(16)
    )
    results = await asyncio.gather(*attempts, return_exceptions=True)
    (winner,) = [result for result in results if isinstance(result, Lease)]
    assert sum(isinstance(result, ConflictError) for result in results) == 15
    assert leased(sql) == {"a": winner.token, "b": winner.token}


async def test_a_renewal_reaches_a_lapsed_lease_and_not_a_lost_one(
    database: Database, sql: psycopg.Connection[Any]
) -> None:
    lease = await leases.acquire(database, ["a", "b"])
    lapse(sql)
    async with database.connection() as connection:
        await leases.renew(connection, lease)
        assert all(holder.live for holder in await leases.find_holders(database, ["a", "b"]))
        lapse(sql)
        await leases.acquire(database, ["b"])
        with pytest.raises(LeaseLostError, match="b was taken over by host"):
            await leases.renew(connection, lease)


async def test_a_release_of_what_was_lost_leaves_the_new_holder_alone(
    database: Database, sql: psycopg.Connection[Any]
) -> None:
    lost = await leases.acquire(database, ["a"])
    lapse(sql)
    held = await leases.acquire(database, ["a"])
    await leases.release(database, lost)
    assert leased(sql) == {"a": held.token}


async def test_a_holder_that_lives_is_respected_and_one_that_was_killed_is_not_waited_for(
    database: Database, holder: subprocess.Popen[str], sql: psycopg.Connection[Any]
) -> None:
    with pytest.raises(ConflictError, match=rf"a is already held by host .*, pid {holder.pid},"):
        await leases.acquire(database, ["a"])
    holder.send_signal(signal.SIGKILL)
    # Not yet waited for, so it is a zombie: gone all the same.
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222 (killed above)
    (found,) = await leases.find_holders(database, ["a"])
    assert (found.live, found.gone) == (True, True)
    assert (await leases.acquire(database, ["a"])).token > found.token


async def test_a_new_board_does_not_wait_for_a_holder_that_was_killed(
    database: Database, holder: subprocess.Popen[str], sql: psycopg.Connection[Any]
) -> None:
    sql.execute("UPDATE assistant.leases SET agent = 'heartbeat'")
    with pytest.raises(ConflictError, match=f"heartbeat is held by .* pid {holder.pid}"):
        await create_status_board(database)
    holder.kill()
    holder.wait()
    board = await create_status_board(database)
    assert board.get()["heartbeat"]["status"] == "idle"
    assert leased(sql) == {}


async def test_a_killed_holder_of_another_host_is_waited_for(
    database: Database, holder: subprocess.Popen[str], sql: psycopg.Connection[Any]
) -> None:
    sql.execute("UPDATE assistant.leases SET process = 'another boot/pid:[1]/5'")
    holder.kill()
    holder.wait()
    with pytest.raises(ConflictError):
        await leases.acquire(database, ["a"])
    lapse(sql)
    await leases.acquire(database, ["a"])


def test_status_on_the_same_host_says_stale_at_once(
    assistant: CommandLine, holder: subprocess.Popen[str], sql: psycopg.Connection[Any]
) -> None:
    assistant("report", "other", "idle")
    sql.execute('UPDATE kv SET value = \'{"a": {"status": "running", "detail": null}}\'')
    assert assistant("status", "a", "--check").code == 0
    holder.kill()
    holder.wait()
    assert assistant("status", "a", "--check").code == 4
    assert sql.execute("SELECT live FROM assistant.agent_status").fetchone() == (True,)


def test_a_process_knows_itself_to_be_alive() -> None:
    assert not known_dead(own_identity())


def test_a_pid_that_was_used_again_is_another_process() -> None:
    own = own_identity()
    machine, _, start = own.key.rpartition("/")
    assert known_dead(ProcessIdentity(own.host, own.pid, f"{machine}/{int(float(start)) - 1}"))


def test_a_process_of_another_machine_is_never_judged() -> None:
    own = own_identity()
    start = own.key.rpartition("/")[2]
    assert not known_dead(ProcessIdentity(own.host, own.pid, f"another boot/pid:[1]/{start}5"))
    assert not known_dead(ProcessIdentity(own.host, 2**22 + 1, f"another boot/pid:[1]/{start}"))
    assert not known_dead(ProcessIdentity(own.host, own.pid, ""))


def test_a_process_that_ended_is_dead() -> None:
    machine = own_identity().key.rpartition("/")[0]
    with subprocess.Popen(["true"]) as process:
        process.wait()
    assert known_dead(ProcessIdentity("", process.pid, f"{machine}/1"))


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("setpriv"),
    reason="needs root, unshare and setpriv",
)
def test_a_process_that_this_user_may_not_look_at_is_not_judged() -> None:
    own = own_identity()
    program = (
        f"sys.path.insert(0, {str(PROJECT)!r})\n"
        "from assistant_cli.process_identity import *\n"
        f"print(known_dead(ProcessIdentity('', {own.pid}, {own.key!r})))"
    )
    hide = "mount --make-rprivate / && mount -o remount,hidepid=2 /proc && "
    become = f"exec setpriv --reuid 65534 --regid 65534 --clear-groups {sys.executable} -c"
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", hide + become + ' "$0"', "import sys\n" + program],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )
    if done.returncode != 0:
        pytest.skip(f"no namespace of its own: {done.stderr}")
    assert done.stdout == "False\n"


def test_a_forked_child_is_a_process_of_its_own() -> None:
    parent = own_identity()
    child = os.fork()
    if child == 0:
        own = own_identity()
        os._exit(0 if own.pid == os.getpid() and own.key != parent.key else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
