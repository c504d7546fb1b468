"""The embedded server on the real thing: what it survives, and who can reach it.

As root the server's own account is tested directly, and the way of an ordinary user through
child processes that run as `nobody`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from assistant_cli.embedded_postgres import EmbeddedPostgres
from assistant_cli.errors import (
    ConfigurationError,
    DatabaseUnreachableError,
)

ROOT = os.geteuid() == 0
PROJECT = Path(__file__).resolve().parent.parent
LIBRARIES = Path(psycopg.__file__).parent.parent
VAR_LIB = Path("/var/lib/assistant")

only_root = pytest.mark.skipif(not ROOT, reason="needs root")
only_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")

DRIVER = """
import asyncio, os, sys
from pathlib import Path
import psycopg
from assistant_cli.embedded_postgres import EmbeddedPostgres
from assistant_cli.errors import AssistantError

async def main(verb, home, *rest):
    server = EmbeddedPostgres(Path(home))
    if verb == "start":
        print(await server.start(lambda line: print(line, file=sys.stderr)))
        rest = rest or (server.dsn(),)
    elif verb == "stop":
        print(await server.stop())
    elif verb == "dsn":
        print(server.dsn())
    async with await psycopg.AsyncConnection.connect(rest[0]) if rest else Nothing() as connection:
        if connection:
            await connection.execute("SELECT 1")
            print(server.dsn() if verb == "start" else "1")

class Nothing:
    async def __aenter__(self): return None
    async def __aexit__(self, *_): return None

os.umask(int(os.environ.get("TEST_UMASK", "022"), 8))
try:
    asyncio.run(main(*sys.argv[1:]))
except AssistantError as error:
    print(type(error).__name__, error)
"""


@dataclass(frozen=True)
class Account:
    """Whom a child process runs as; the interpreter must be one that this user can execute."""

    name: str
    python: str
    switch: dict[str, Any]

    def spawn(self, verb: str, home: Path, *rest: str, **more: str) -> subprocess.Popen[str]:
        paths = os.pathsep.join([str(PROJECT), str(LIBRARIES)])
        return subprocess.Popen(
            [self.python, "-W", "error", "-c", DRIVER, verb, str(home), *rest],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
            env={**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1", **more},
            **self.switch,
        )

    def run(self, verb: str, home: Path, *rest: str, **more: str) -> tuple[str, str]:
        with self.spawn(verb, home, *rest, **more) as child:
            out, err = child.communicate(timeout=60)
        return out.splitlines()[0] if out else "", err


def reachable(path: Path) -> bool:
    return all(parent.stat().st_mode & stat.S_IXOTH for parent in path.resolve().parents)


def ordinary_account() -> Account | None:
    if not ROOT:
        return Account(pwd.getpwuid(os.geteuid()).pw_name, sys.executable, {})
    version = f"python3.{sys.version_info.minor}"
    pythons = [sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"]
    usable = [name for name in pythons if Path(name).exists() and reachable(Path(name))]
    if not usable or not reachable(LIBRARIES / "x") or not reachable(PROJECT / "x"):
        return None
    nobody = pwd.getpwnam("nobody")
    switch = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    return Account("nobody", usable[0], switch)


@pytest.fixture(scope="session")
def ordinary() -> Account:
    account = ordinary_account()
    if account is None:
        pytest.skip("no interpreter that an ordinary user can execute")
    return account


@pytest.fixture(scope="session")
def me() -> Account:
    return Account(pwd.getpwuid(os.geteuid()).pw_name, sys.executable, {})


@pytest.fixture(params=["me", "ordinary user"])
def account(request: pytest.FixtureRequest) -> Account:
    if request.param == "me":
        return Account(pwd.getpwuid(os.geteuid()).pw_name, sys.executable, {})
    if not ROOT:
        pytest.skip("that is me")
    found = ordinary_account()
    if found is None:
        pytest.skip("no interpreter that an ordinary user can execute")
    return found


def servers_below(folders: list[Path]) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.name() in ("postgres", "initdb") and any(
                str(folder) in " ".join([process.cwd(), *process.cmdline()]) for folder in folders
            ):
                found.append(process)
    return found


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that everybody can pass and write; its servers are ended in the end."""
    before = set(VAR_LIB.glob("*")) if ROOT else set()
    folder = Path(tempfile.mkdtemp(prefix="ep-", dir="/tmp")).resolve()
    folder.chmod(0o1777)
    yield folder
    links = [link for link in folder.rglob("postgres") if link.is_symlink()] if ROOT else []
    elsewhere = [link.resolve() for link in links if link.resolve().exists()]
    end_servers([folder, *elsewhere])
    for path in [folder, *elsewhere]:
        shutil.rmtree(path)
    if ROOT and not before:
        with contextlib.suppress(OSError):
            VAR_LIB.rmdir()


def end_servers(folders: list[Path]) -> None:
    for process in servers_below(folders):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    until(lambda: not servers_below(folders))


@pytest.fixture(scope="session")
def created() -> Iterator[Callable[[Account], Path]]:
    """A home with a cluster in it, made once an account and stopped."""
    base = Path(tempfile.mkdtemp(prefix="ep-", dir="/tmp")).resolve()
    base.chmod(0o1777)
    homes: dict[str, Path] = {}

    def home_of(account: Account) -> Path:
        if account.name not in homes:
            homes[account.name] = base / account.name
            assert account.run("start", base / account.name)[0] == "True"
            assert account.run("stop", base / account.name)[0] == "True"
        return homes[account.name]

    yield home_of
    end_servers([base])
    shutil.rmtree(base)


@pytest.fixture
def home(account: Account, created: Callable[[Account], Path]) -> Iterator[Path]:
    """A home with a cluster in it that is not running; tests leave it usable."""
    home = created(account)
    yield home
    end_servers([home])


@pytest.fixture
def server(me: Account, created: Callable[[Account], Path]) -> Iterator[EmbeddedPostgres]:
    """A server that is created and not running; tests leave it usable."""
    server = EmbeddedPostgres(created(me))
    yield server
    end_servers([server.home])


@pytest.fixture
def new_server(place: Path) -> EmbeddedPostgres:
    return EmbeddedPostgres(place / "home")


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.003)


async def query(server: EmbeddedPostgres, statement: str) -> Any:
    async with await psycopg.AsyncConnection.connect(server.dsn(), autocommit=True) as connection:
        cursor = await connection.execute(statement)
        row = await cursor.fetchone() if cursor.description else None
        return row[0] if row else None


def silent(line: str) -> None:
    pass


def postmaster(server: EmbeddedPostgres) -> psutil.Process:
    return psutil.Process(int((server.data_folder / "postmaster.pid").read_text().split()[0]))


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


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_a_fresh_start_answers_queries_and_says_where_it_is(
    new_server: EmbeddedPostgres,
) -> None:
    server = new_server
    said: list[str] = []
    assert not server.exists()
    assert await server.start(said.append)
    assert server.exists()
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


async def test_libpq_variables_lead_nowhere_else(
    server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "PORT": "1",
        "HOSTADDR": "127.0.0.1",
        "DATABASE": "x",
        "DATA": "/x",
    }.items():
        monkeypatch.setenv(f"PG{name}", value)
    assert await server.start(silent)
    assert await query(server, "SELECT 1") == 1


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


async def test_a_crash_recovery_that_fails_leaves_its_reason(server: EmbeddedPostgres) -> None:
    wal = server.data_folder / "pg_wal"
    wal.rename(server.folder / "pg_wal")
    with pytest.raises(DatabaseUnreachableError, match='"pg_wal" does not exist'):
        await server.start(silent)
    (server.folder / "pg_wal").rename(wal)


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
