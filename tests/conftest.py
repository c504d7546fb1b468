"""Every test runs on a real Postgres, in a database of its own copied from a template."""

from __future__ import annotations

import asyncio
import atexit
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, LiteralString
from uuid import uuid4

import psycopg
import pytest
from psycopg import AsyncConnection
from psycopg.conninfo import make_conninfo
from psycopg.sql import SQL, Composed, Identifier

from assistant_cli.embedded_postgres import EmbeddedPostgres
from assistant_cli.store import leases
from assistant_cli.store.board import StatusBoard
from assistant_cli.store.database import Database
from assistant_cli.store.kv import KeyValues
from assistant_cli.store.leases import Lease
from assistant_cli.store.migrations import migrate

from .driven_clock import DrivenClock
from .forking import Forker, is_forkable
from .openai_server import MODEL, OpenAIServer, serving

if TYPE_CHECKING:
    from .hosting import Hold
    from .password_server import PasswordServer

# Whoever starts the tests in the background, or with nohup, has them ignore signals, and all that
# they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

PATIENCE_SECONDS = 20.0
"""How long a test waits for something that ought to happen at once."""


def pytest_xdist_auto_num_workers() -> int:
    """More than processors: tests mostly wait for the programs and servers that they start."""
    return 2 * (os.cpu_count() or 1)


def _place_of_databases() -> str:
    """In memory where there is room and programs may be run, else on the disk.

    Each test copies a database, of 300 files. Where as many were just deleted, ext4 looks at each
    of them before it makes a new one (recently_deleted), which took most of the tests' time.
    """
    with suppress(OSError):
        memory = os.statvfs("/dev/shm")
        if memory.f_bavail * memory.f_frsize > 4e9 and not memory.f_flag & os.ST_NOEXEC:
            return "/dev/shm"
    return "/tmp"


@pytest.fixture(scope="session")
def server_home() -> Iterator[Path]:
    """A home with an embedded server that is up, for the tests of one worker."""
    # Directly there: a server that runs for root must be able to reach its folder.
    home = Path(tempfile.mkdtemp(prefix="assistant-tests-", dir=_place_of_databases()))
    home.chmod(0o711)
    server = EmbeddedPostgres(home)
    asyncio.run(server.start(lambda _: None))
    try:
        yield home
    finally:
        asyncio.run(server.stop())
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def admin_dsn(server_home: Path) -> str:
    """Connects to the server's own database."""
    return make_conninfo(EmbeddedPostgres(server_home).dsn(), dbname="postgres")


@pytest.fixture(scope="session")
def template(admin_dsn: str) -> str:
    """A migrated database to copy."""
    name = "template_assistant"
    _execute(admin_dsn, SQL("CREATE DATABASE {}").format(Identifier(name)))

    async def set_up() -> None:
        database = Database(make_conninfo(admin_dsn, dbname=name))
        await migrate(database)
        await database.close()

    asyncio.run(set_up())
    return name


@pytest.fixture
def empty_dsn(admin_dsn: str) -> Iterator[str]:
    """A database of the test's own with nothing in it."""
    yield from _database(admin_dsn, "template0")


@pytest.fixture
def ascii_dsn(admin_dsn: str) -> Iterator[str]:
    """A database in the encoding that a server has whose maker had no locale."""
    encoding = "ENCODING 'SQL_ASCII' LOCALE_PROVIDER libc LC_COLLATE 'C' LC_CTYPE 'C'"
    yield from _database(admin_dsn, "template0", encoding)


@pytest.fixture
def dsn(admin_dsn: str, template: str) -> Iterator[str]:
    """A database of the test's own, migrated."""
    yield from _database(admin_dsn, template)


@pytest.fixture
async def database(dsn: str) -> AsyncIterator[Database]:
    """The test's database, opened as the library does."""
    database = Database(dsn)
    yield database
    await database.close()


@pytest.fixture
def sql(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """The test's database as any other program sees and changes it."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield connection


@pytest.fixture
def kv(database: Database) -> KeyValues:
    """The keys of the test's database, as the library has them."""
    return database.kv


@pytest.fixture
async def plain(dsn: str) -> AsyncIterator[AsyncConnection]:
    """Another program: a connection that knows nothing of the library."""
    async with await AsyncConnection.connect(dsn, autocommit=True) as connection:
        yield connection


@pytest.fixture
async def lease(database: Database) -> Lease:
    """What whoever answers messages holds."""
    return await leases.acquire(database, ["conversation"])


@pytest.fixture
async def boards(dsn: str) -> AsyncIterator[list[StatusBoard]]:
    """The boards of as many processes, or of what the server takes for such."""
    databases = [Database(dsn) for _ in range(6)]
    yield [StatusBoard(database) for database in databases]
    for database in databases:
        await database.close()


def _database(admin_dsn: str, template: str, more: LiteralString = "") -> Iterator[str]:
    name = f"test_{uuid4().hex[:12]}"
    create = "CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy "
    _execute(admin_dsn, SQL(create + more).format(Identifier(name), Identifier(template)))
    yield make_conninfo(admin_dsn, dbname=name)
    _execute(admin_dsn, SQL("DROP DATABASE {} WITH (FORCE)").format(Identifier(name)))


def _execute(dsn: str, statement: Composed) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(statement)


@dataclass(frozen=True)
class Finished:
    """A command that ended: its exit code and what it printed."""

    code: int
    out: str
    err: str


@cache
def _forker() -> Forker:
    forker = Forker()
    atexit.register(forker.close)
    return forker


class CommandLine:
    """Runs `assistant` as a user does: as a process, with an environment."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self._started: list[subprocess.Popen[str]] = []

    def __call__(self, *arguments: str, stdin: str | bytes | None = None) -> Finished:
        """Run a command to its end."""
        data = (stdin.encode() if isinstance(stdin, str) else stdin) or b""
        if is_forkable(self.environment):
            code, out, err = _forker().run(arguments, self.environment, data, 60)
            return Finished(code, out.decode(), err.decode())
        done = subprocess.run(
            self.command(*arguments),
            input=data,
            capture_output=True,
            env=self.environment,
            timeout=60,
            check=False,
        )
        return Finished(done.returncode, done.stdout.decode(), done.stderr.decode())

    def start(self, *arguments: str, **options: object) -> subprocess.Popen[str]:
        """Start a command that goes on; it is killed when the test ends."""
        settings: dict[str, object] = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
            "env": self.environment,
            **options,
        }
        process: subprocess.Popen[str] = subprocess.Popen(
            self.command(*arguments),
            **settings,  # type: ignore[call-overload]
        )
        self._started.append(process)
        return process

    def start_run(self, *arguments: str) -> subprocess.Popen[str]:
        """Start `run` and return once it hosts its agents."""
        process = self.start("run", *arguments)
        assert process.stderr is not None
        for line in process.stderr:
            if "hosting" in line or "standing by" in line:
                return process
        raise AssertionError(f"run ended with {process.wait()} before it hosted anything")

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "assistant_cli", *arguments]

    def end_all(self) -> None:
        for process in self._started:
            with process:
                process.kill()


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment that knows nothing of this machine's own assistant."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
    return {**kept, "HOME": str(tmp_path), "ASSISTANT_HOME": str(tmp_path / "home")}


@pytest.fixture
def assistant(dsn: str, environment: dict[str, str]) -> Iterator[CommandLine]:
    """The command line on the test's database."""
    command_line = CommandLine({**environment, "ASSISTANT_DATABASE_URL": dsn})
    yield command_line
    command_line.end_all()


@pytest.fixture
def kept(assistant: CommandLine, sql: psycopg.Connection[Any]) -> CommandLine:
    """The command line on a database with a turn of each kind."""
    sql.execute("""
        INSERT INTO assistant.turns (agent, trigger, conversation, token, model, outcome, error,
            started_at, ended_at, requests, input_tokens, output_tokens, cost_usd) VALUES
        ('conversation', 'message', 'main', 1, 'm', 'done', NULL,
            '2026-11-23T10:00:00Z', '2026-11-23T10:01:02.5Z', 2, 1200, 34, 0.0000123),
        ('heartbeat', 'timer', 'main', 1, 'm', 'silent', NULL,
            '2026-11-23T10:00:00Z', '2026-11-23T10:00:00Z', 0, 0, 0, NULL),
        ('conversation', 'message', 'work', 1, 'm', 'failed', E'first\\tline\\nsecond line',
            '2026-11-23T10:00:00Z', '2026-11-23T10:00:01Z', 0, 0, 0, NULL),
        ('heartbeat', 'reminder', NULL, 1, 'none', 'timed_out', 'late',
            '2026-11-23T10:00:00Z', '2026-11-23T10:00:01Z', 0, 0, 0, NULL),
        ('conversation', 'message', 'main', 1, 'm', 'interrupted', 'gone',
            '2026-11-23T10:00:00Z', '2026-11-23T10:00:01Z', 0, 0, 0, NULL),
        ('conversation', 'message', 'main', 1, 'm', 'running', NULL, now(), NULL, 0, 0, 0, NULL)
    """)
    return assistant


@pytest.fixture
def private_home() -> Iterator[Path]:
    """A home whose embedded server a test may stop."""
    home = Path(tempfile.mkdtemp(prefix="assistant-private-", dir="/tmp"))
    home.chmod(0o711)
    yield home
    asyncio.run(EmbeddedPostgres(home).stop())
    shutil.rmtree(home)


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    """A server of language models that does as the test says."""
    with serving() as server:
        yield server


@pytest.fixture
def talking(
    database: Database, server: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., AbstractAsyncContextManager[object]]:
    """Hosts the agents with a language model of that server."""
    from .hosting import hosting

    monkeypatch.setenv("ASSISTANT_BASE_URL", server.base_url)
    return partial(hosting, database, MODEL)


@pytest.fixture
def hold(tmp_path: Path) -> Hold:
    """A model that answers once the test lets it."""
    from .hosting import Hold

    return Hold(tmp_path)


@pytest.fixture
def clock() -> DrivenClock:
    """A clock whose time only the test moves."""
    return DrivenClock()


@pytest.fixture
def in_zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Sets the time zone of this process, by the value of TZ."""

    def move(zone: str) -> None:
        monkeypatch.setenv("TZ", zone)
        time.tzset()

    yield move
    monkeypatch.undo()
    time.tzset()


@pytest.fixture(scope="session")
def password_server() -> Iterator[PasswordServer]:
    """A server that asks for passwords, with a user for each role."""
    from .password_server import asking_for_passwords

    with asking_for_passwords() as server:
        yield server


@pytest.fixture
def pooled_dsn(password_server: PasswordServer) -> Iterator[str]:
    """A database through a pooler that lends four backends, a transaction at a time."""
    from .pooler import Pooler
    from .postgres_server import PASSWORD, answers, free_port

    with psycopg.connect(password_server.url(), autocommit=True) as connection:
        connection.execute("TRUNCATE public.kv, assistant.messages, assistant.turns CASCADE")
    listen = free_port()
    target = f"port={password_server.port} user=runtime password={PASSWORD} dbname=app"
    pooler = Pooler(listen, "app", target)
    pooled = f"postgresql://any@127.0.0.1:{listen}/app"
    try:
        pooler.start()
        eventually(lambda: answers(pooled), "the pooler")
        yield pooled
    finally:
        pooler.remove()


def eventually(condition: Callable[[], object], what: str = "the condition") -> None:
    """Wait until a condition about another process is true; fail after a while."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true within {PATIENCE_SECONDS:.0f}s")
        time.sleep(0.02)


def lock_waiters(connection: psycopg.Connection[Any]) -> list[int]:
    """The backends of a database that wait for a lock."""
    query = (
        "SELECT pid FROM pg_stat_activity "
        "WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    return [row[0] for row in connection.execute(query)]


async def until_locked(dsn: str, count: int) -> None:
    """Wait until so many connections wait for a lock."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        await asyncio.to_thread(
            eventually, lambda: len(lock_waiters(connection)) == count, "the wait for a lock"
        )
