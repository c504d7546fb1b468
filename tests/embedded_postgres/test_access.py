"""Who can reach the embedded server and read its files, and what keeps the others out."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import psutil
import psycopg
import pytest

from assistant_cli.embedded_postgres import EmbeddedPostgres
from assistant_cli.errors import ConfigurationError

from ..accounts import Account, mode, only_root, until
from .conftest import VAR_LIB, postmaster, query, silent


def read_as(account: Account, path: Path) -> str:
    command = ["cat", str(path)]
    done: subprocess.CompletedProcess[str] = subprocess.run(
        command, capture_output=True, text=True, check=False, **account.switch
    )
    return done.stderr


def known_accounts() -> bytes:
    return Path("/etc/passwd").read_bytes() + Path("/etc/group").read_bytes()


def process_status(process: psutil.Process) -> str:
    return Path(f"/proc/{process.pid}/status").read_text()


def test_a_socket_folder_that_somebody_else_made_is_refused(ordinary: Account, place: Path) -> None:
    home = place / ("x" * 100)
    dsn = ordinary.run("dsn", home)[0]
    socket = Path(str(psycopg.conninfo.conninfo_to_dict(dsn)["host"]))
    assert "requirepeer" in dsn
    socket.mkdir(mode=0o755)
    try:
        for verb in ("dsn", "start"):
            answer = ordinary.run(verb, home)[0]
            assert answer.startswith("NotPermittedError"), answer
            assert "set ASSISTANT_HOME" in answer
    finally:
        shutil.rmtree(socket)


@pytest.mark.parametrize("umask", ["000", "077"])
def test_the_umask_changes_nothing(account: Account, place: Path, umask: str) -> None:
    home = place / "home"
    out, err = account.run("start", home, TEST_UMASK=umask)
    assert out == "True", (out, err)
    folder = home / "postgres"
    passage = 0o711 if account.name == "root" else 0o700
    assert mode(home) == mode(folder) == passage
    assert mode(folder / "data") == mode(folder / "socket") == 0o700
    assert mode(folder / "lock") == mode(folder / "startup.log") == 0o600
    logs = list((folder / "data" / "log").iterdir())
    assert [mode(log) for log in logs] == [0o600]
    account.run("stop", home)


async def test_values_do_not_reach_the_log(server: EmbeddedPostgres) -> None:
    await server.start(silent)
    await query(
        server, "CREATE TABLE guarded (n integer PRIMARY KEY, v text CHECK (v <> 's3cret'))"
    )
    with pytest.raises(psycopg.Error):
        await query(server, "INSERT INTO guarded VALUES (1, 's3cret')")
    # The server's collector writes it in its own time.
    until(lambda: "violates check constraint" in server.log_file.read_text())
    assert "s3cret" not in server.log_file.read_text()


@only_root
def test_a_home_of_another_user_is_refused(ordinary: Account, place: Path) -> None:
    home = place / "home"
    home.mkdir()
    answer = ordinary.run("start", home)[0]
    assert answer == f"NotPermittedError {home} belongs to root; set ASSISTANT_HOME"


def test_a_home_that_cannot_be_made_is_refused_in_one_line(ordinary: Account) -> None:
    answer = ordinary.run("start", Path("/proc/assistant/home"))[0]
    assert "/proc/assistant" in answer
    assert answer.split()[0] in ("NotPermittedError", "DatabaseUnreachableError")


@only_root
async def test_other_users_can_neither_connect_nor_read(
    server: EmbeddedPostgres, ordinary: Account
) -> None:
    await server.start(silent)
    dsn = server.dsn()
    with ordinary.spawn("query", server.home, dsn) as child:
        out, err = child.communicate()
    assert "1" not in out
    assert "Permission denied" in err
    for part in ("data/PG_VERSION", "socket/.s.PGSQL.5432", "lock", "startup.log"):
        assert "Permission denied" in read_as(ordinary, server.folder / part)
    (server.folder / "socket").chmod(0o755)
    with ordinary.spawn("query", server.home, dsn) as child:
        _, err = child.communicate()
    assert "Permission denied" in err


@only_root
async def test_peer_authentication_refuses_another_user_who_reaches_the_socket(
    server: EmbeddedPostgres, ordinary: Account
) -> None:
    await server.start(silent)
    socket = server.folder / "socket"
    socket.chmod(0o755)
    (socket / ".s.PGSQL.5432").chmod(0o777)
    with ordinary.spawn("query", server.home, server.dsn()) as child:
        _, err = child.communicate()
    assert 'Peer authentication failed for user "root"' in err


@only_root
async def test_root_runs_the_server_under_a_private_account(new_server: EmbeddedPostgres) -> None:
    server = new_server
    accounts = known_accounts()
    await server.start(silent)
    uids = postmaster(server).uids()
    assert 60578 <= uids.real == uids.effective == uids.saved <= 61183
    assert postmaster(server).gids().real == uids.real
    assert "\nGroups:\t \n" in process_status(postmaster(server))
    assert known_accounts() == accounts
    assert server.folder == server.home / "postgres"


@only_root
async def test_a_path_that_a_shell_would_change_is_no_hindrance(place: Path) -> None:
    server = EmbeddedPostgres(place / '$HOME "and" `more`')
    assert await server.start(silent)
    assert server.folder.parent == VAR_LIB
    assert await query(server, "SELECT 1") == 1
    assert await server.stop()


@only_root
async def test_a_home_below_a_closed_folder_keeps_its_parents_closed(place: Path) -> None:
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    parents = [place, closed, Path("/tmp"), Path("/var/lib"), Path("/var")]
    before = [mode(parent) for parent in parents]
    server = EmbeddedPostgres(closed / "home")
    assert await server.start(silent)
    assert [mode(parent) for parent in parents] == before
    assert mode(server.home) == 0o700
    assert (server.home / "postgres").is_symlink()
    assert server.folder.parent == VAR_LIB
    assert await query(server, "SELECT 1") == 1
    assert await server.stop()
    shutil.rmtree(server.folder)
    with pytest.raises(ConfigurationError, match="which is gone; restore it, or remove the link"):
        await server.start(silent)


@only_root
async def test_a_copy_of_the_programs_of_an_older_wheel_is_replaced(
    server: EmbeddedPostgres,
) -> None:
    (copy,) = server.folder.glob("programs-*")
    copy.rename(server.folder / "programs-0.0.1")
    assert await server.start(silent)
    assert list(server.folder.glob("programs-*")) == [copy]
