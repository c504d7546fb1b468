"""The embedded server starts once, wherever it is and whoever starts it, and ends in order."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
from pathlib import Path

import psutil
import psycopg
import pytest

from assistant_cli.embedded_postgres import EmbeddedPostgres
from assistant_cli.errors import ConfigurationError, DatabaseUnreachableError

from ..accounts import Account, mode, only_linux, servers_below, until
from .conftest import VAR_LIB, query, silent


async def test_a_fresh_start_answers_queries_and_says_where_it_is(
    new_server: EmbeddedPostgres,
) -> None:
    server = new_server
    said: list[str] = []
    assert not server.data_folder.exists()
    assert await server.start(said.append)
    assert server.data_folder.exists()
    *progress, started = said
    assert all(line.startswith("still starting") for line in progress)
    assert started == (
        f"started the embedded Postgres in {server.folder}; it stays up until `assistant db stop`"
    )
    assert await query(server, "SELECT current_database()") == "assistant"
    assert await query(server, "SELECT current_user") == pwd.getpwuid(os.geteuid()).pw_name
    assert await query(server, "SHOW server_encoding") == "UTF8"
    assert await query(server, "SELECT datlocale FROM pg_database LIMIT 1") == "C.UTF-8"
    assert await query(server, "SHOW fsync") == "on"
    assert await query(server, "SHOW synchronous_commit") == "on"


async def test_a_second_start_finds_it_running(server: EmbeddedPostgres) -> None:
    said: list[str] = []
    assert await server.start(silent)
    assert not await server.start(said.append)
    assert said == []


async def test_stop_ends_it_in_order_and_it_can_be_started_again(server: EmbeddedPostgres) -> None:
    assert not await server.stop()
    await server.start(silent)
    await query(server, "CREATE TABLE kept AS SELECT 7 AS n")
    assert await server.stop()
    assert "database system is shut down" in server.log_file.read_text()
    assert not await server.stop()
    assert await server.start(silent)
    assert await query(server, "SELECT n FROM kept") == 7


async def test_stop_ends_it_while_clients_are_connected(server: EmbeddedPostgres) -> None:
    await server.start(silent)
    connection = await psycopg.AsyncConnection.connect(server.dsn())
    assert await server.stop()
    await connection.close()


def test_twenty_starts_at_once_make_one_server(account: Account, place: Path) -> None:
    home = place / "home"
    children = [account.spawn("start", home) for _ in range(20)]
    answers = [child.communicate(timeout=60) for child in children]
    assert sorted(out.split()[0] for out, _ in answers) == ["False"] * 19 + ["True"], answers
    data = home / "postgres" / "data"
    masters = [p for p in servers_below([place]) if p.cmdline()[0].endswith("/postgres")]
    assert [p.cwd() for p in masters] == [str(data)]
    assert account.run("stop", home)[0] == "True"


async def test_a_start_that_is_cancelled_frees_the_lock_and_reaps_initdb(
    new_server: EmbeddedPostgres,
) -> None:
    server = new_server
    start = asyncio.create_task(server.start(silent))
    while not list(server.folder.glob("new-*/PG_VERSION")):
        assert not start.done()
        await asyncio.sleep(0)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert not [p for p in psutil.Process().children() if p.name() == "initdb"]
    assert await asyncio.wait_for(server.start(silent), 30)


def test_a_path_too_long_for_a_socket_is_no_hindrance(account: Account, place: Path) -> None:
    home = place / ("long, " * 20 + "and 'quoted'") / "home"
    with account.spawn("start", home) as child:
        started, dsn = child.communicate()[0].splitlines()
    assert started == "True"
    socket = Path(str(psycopg.conninfo.conninfo_to_dict(dsn)["host"]))
    try:
        assert len(str(socket)) < 80
        assert mode(socket) == 0o700
        assert account.run("stop", home)[0] == "True"
    finally:
        if not socket.is_relative_to(VAR_LIB):
            shutil.rmtree(socket, ignore_errors=True)


async def test_libpq_variables_lead_nowhere_else(
    server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "PORT": "1",
        "HOSTADDR": "127.0.0.1",
        "DATABASE": "x",
        "DATA": "/x",
        "TARGETSESSIONATTRS": "standby",
        "CHANNELBINDING": "require",
        "GSSENCMODE": "require",
    }.items():
        monkeypatch.setenv(f"PG{name}", value)
    assert await server.start(silent)
    assert await query(server, "SELECT 1") == 1


async def test_data_of_another_version_are_refused(server: EmbeddedPostgres) -> None:
    (server.data_folder / "PG_VERSION").write_text("16\n")
    with pytest.raises(ConfigurationError, match="made by PostgreSQL 16 and this is 18"):
        await server.start(silent)
    (server.data_folder / "PG_VERSION").write_text("18\n")


async def test_a_server_that_ends_at_once_leaves_its_reason(server: EmbeddedPostgres) -> None:
    settings = server.data_folder / "postgresql.conf"
    before = settings.read_text()
    settings.write_text(f"{before}no_such_setting = 1\n")
    with pytest.raises(DatabaseUnreachableError, match=r"does not start: .*configuration file"):
        await server.start(silent)
    settings.write_text(before)


@only_linux
def test_the_server_outlives_its_starter_and_hears_no_signal_of_its_terminal(
    account: Account, home: Path
) -> None:
    account.run("start", home)
    pid = int((home / "postgres" / "data" / "postmaster.pid").read_text().split()[0])
    assert os.getsid(pid) == pid
    assert Path(f"/proc/{pid}/fd/0").readlink() == Path("/dev/null")
    handles = [handle.readlink() for handle in Path(f"/proc/{pid}/fd").iterdir()]
    assert not [target for target in handles if target.name == "lock"]
    assert account.run("start", home)[0] == "False"
    os.kill(pid, signal.SIGINT)
    until(lambda: not servers_below([home]))
