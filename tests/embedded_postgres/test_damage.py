"""What the embedded server survives: kills, starts that were cut off, and damaged files."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
from pathlib import Path

import psutil
import psycopg
import pytest

from assistant_cli.embedded_postgres import EmbeddedPostgres
from assistant_cli.errors import DatabaseUnreachableError

from ..accounts import Account, only_linux, until
from ..small_disk import needs_small_disk, small_disk
from .conftest import postmaster, query, silent


@pytest.mark.parametrize(
    "content",
    [b"", b"12", b"garbage\n\xff\n", b"-4\n", b"9" * 5000, b"999999999999\n/x\n", b"0\n"],
    ids=["empty", "truncated", "garbage", "negative", "huge", "too large", "zero"],
)
async def test_damaged_lock_files_are_replaced(server: EmbeddedPostgres, content: bytes) -> None:
    pid_file = server.data_folder / "postmaster.pid"
    pid_file.write_bytes(content)
    (server.folder / "socket" / ".s.PGSQL.5432.lock").write_bytes(content)
    assert not await server.stop()
    assert await server.start(silent)
    assert await query(server, "SELECT 1") == 1


def test_lock_files_that_name_somebody_else_harm_nobody(account: Account, home: Path) -> None:
    account.run("start", home)
    pid_file = home / "postgres" / "data" / "postmaster.pid"
    lines = pid_file.read_text().split("\n")
    account.run("stop", home)
    with subprocess.Popen(["sleep", "600"], **account.switch) as bystander:
        try:
            for file in (pid_file, home / "postgres" / "socket" / ".s.PGSQL.5432.lock"):
                file.write_text("\n".join([str(bystander.pid), *lines[1:]]))
                shutil.chown(file, pid_file.parent.stat().st_uid)
            assert account.run("stop", home)[0] == "False"
            assert account.run("start", home)[0] == "True"
            assert int(pid_file.read_text().split()[0]) != bystander.pid
            assert account.run("stop", home)[0] == "True"
            assert bystander.poll() is None
        finally:
            bystander.kill()


async def test_data_survive_the_kill_of_the_postmaster(server: EmbeddedPostgres) -> None:
    await server.start(silent)
    await query(server, "CREATE TABLE recovered AS SELECT generate_series(1, 50000) AS n")
    postmaster(server).kill()
    assert await server.start(silent)
    assert await query(server, "SELECT count(*) FROM recovered") == 50000


async def test_a_start_waits_for_processes_that_outlive_the_postmaster(
    server: EmbeddedPostgres,
) -> None:
    await server.start(silent)
    connection = await psycopg.AsyncConnection.connect(server.dsn())
    orphan = psutil.Process(connection.info.backend_pid)
    orphan.suspend()
    postmaster(server).kill()
    (server.data_folder / "postmaster.pid").write_bytes(b"")
    start = asyncio.create_task(server.start(silent))
    done, _ = await asyncio.wait({start}, timeout=1)
    assert not done
    assert (server.data_folder / "postmaster.pid").read_bytes() == b""
    orphan.resume()
    assert await start
    assert not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE
    with contextlib.suppress(psycopg.Error):
        await connection.close()


@pytest.mark.parametrize("moment", ["new-*/PG_VERSION", "data", "data/postmaster.pid", "new-*"])
def test_a_start_killed_at_any_moment_leaves_nothing_that_hinders_the_next(
    me: Account, new_server: EmbeddedPostgres, moment: str
) -> None:
    server = new_server
    child = me.spawn("start", server.home)
    until(lambda: list((server.home / "postgres").glob(moment)))
    child.kill()
    child.communicate()
    assert asyncio.run(server.start(silent)) in (True, False)
    assert asyncio.run(query(server, "SELECT current_database()")) == "assistant"
    asyncio.run(server.stop())
    asyncio.run(server.start(silent))
    assert not list(server.folder.glob("new-*"))


async def test_a_database_left_out_by_a_killed_start_is_made(server: EmbeddedPostgres) -> None:
    await server.start(silent)
    elsewhere = psycopg.conninfo.make_conninfo(server.dsn(), dbname="postgres")
    async with await psycopg.AsyncConnection.connect(elsewhere, autocommit=True) as connection:
        await connection.execute("DROP DATABASE assistant")
    assert not await server.start(silent)
    assert await query(server, "SELECT current_database()") == "assistant"


@only_linux
async def test_a_home_that_was_removed_under_the_server_is_made_anew(
    new_server: EmbeddedPostgres,
) -> None:
    server = new_server
    await server.start(silent)
    old = postmaster(server)
    shutil.rmtree(server.home)
    assert await asyncio.wait_for(server.start(silent), 15)
    assert not old.is_running() or old.status() == psutil.STATUS_ZOMBIE
    assert await query(server, "SELECT 1") == 1


async def test_a_crash_recovery_that_fails_leaves_its_reason(server: EmbeddedPostgres) -> None:
    wal = server.data_folder / "pg_wal"
    wal.rename(server.folder / "pg_wal")
    try:
        with pytest.raises(DatabaseUnreachableError, match='"pg_wal" does not exist'):
            await server.start(silent)
    finally:
        (server.folder / "pg_wal").rename(wal)


@needs_small_disk
@pytest.mark.parametrize("megabytes", [1, 20, 40])
async def test_a_first_start_on_a_full_disk_says_so_and_leaves_nothing(
    place: Path, megabytes: int
) -> None:
    with small_disk(place / "disk", 120) as disk:
        server = EmbeddedPostgres(place / "disk" / "home")
        disk.fill(leave=megabytes << 20)
        with pytest.raises(DatabaseUnreachableError, match=r"\A.{1,250}\Z"):
            await server.start(silent)
        assert not list(server.folder.glob("new-*"))
        disk.free()
        assert await server.start(silent)
        assert await query(server, "SELECT 1") == 1
        assert await server.stop()


@needs_small_disk
async def test_a_start_without_room_for_the_recovery_leaves_its_reason(place: Path) -> None:
    much_wal = "SELECT pg_logical_emit_message(false, '', repeat('x', 20000000))"
    with small_disk(place / "disk", 130) as disk:
        server = EmbeddedPostgres(place / "disk" / "home")
        await server.start(silent)
        disk.fill(leave=30_000)
        with pytest.raises(psycopg.OperationalError):
            await query(server, much_wal)
        postmaster(server).kill()
        with pytest.raises(DatabaseUnreachableError, match="No space left on device"):
            await server.start(silent)
        disk.free()
        assert await server.start(silent)
        assert await server.stop()
