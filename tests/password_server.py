"""A server of its own that asks everybody for a password."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg

from assistant_cli import server_account
from assistant_cli.store.database import Database
from assistant_cli.store.migrations import migrate

from .conftest import eventually

PASSWORD = "right-s3cret"
_ROLES = Path(__file__).parent.parent / "infra" / "roles.sql"


@dataclass(frozen=True)
class PasswordServer:
    """A server whose database `app` is set up for this program.

    Of its users, `runtime` has the role of one that runs the agents, `viewer` that of a reader,
    and `stranger` none.
    """

    port: int

    def url(self, user: str = "owner", password: str = PASSWORD, database: str = "app") -> str:
        return f"postgresql://{user}:{password}@127.0.0.1:{self.port}/{database}"


@contextmanager
def asking_for_passwords() -> Iterator[PasswordServer]:
    folder = Path(tempfile.mkdtemp(prefix="assistant-scram-", dir="/tmp"))
    folder.chmod(0o711)
    try:
        server = PasswordServer(free_port())
        process = _start(folder, server)
        try:
            eventually(lambda: answers(server.url(database="postgres")), "the server")
            _fill(server)
            yield server
        finally:
            process.terminate()
            process.wait()
    finally:
        shutil.rmtree(folder)


def _start(folder: Path, server: PasswordServer) -> subprocess.Popen[bytes]:
    account = server_account.initdb_account()
    programs = server_account.server_programs(folder)
    data, secret = folder / "data", folder / "password"
    data.mkdir(mode=0o700)
    secret.write_text(PASSWORD)
    for path in (data, secret):
        account.take(path)
    initdb = [f"--pgdata={data}", "--username=owner", f"--pwfile={secret}", "--no-sync"]
    initdb += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"]
    subprocess.run(
        [str(programs / "initdb"), *initdb],
        check=True,
        capture_output=True,
        cwd="/",
        **account.switch(),
    )
    settings = {"port": server.port, "unix_socket_directories": "", "fsync": "off"}
    return subprocess.Popen(
        [str(programs / "postgres"), f"-D{data}", *(f"-c{n}={v}" for n, v in settings.items())],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        **account.switch(),
    )


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def answers(dsn: str) -> bool:
    """Whether somebody lets us in."""
    with suppress(psycopg.OperationalError), psycopg.connect(dsn):
        return True
    return False


def _fill(server: PasswordServer) -> None:
    with psycopg.connect(server.url(database="postgres"), autocommit=True) as connection:
        connection.execute("CREATE DATABASE app")

    async def set_up() -> None:
        database = Database(server.url())
        await migrate(database)
        await database.close()

    asyncio.run(set_up())
    with psycopg.connect(server.url(), autocommit=True) as connection:
        for _ in range(2):  # it can run again
            connection.execute(_ROLES.read_bytes())
        for user, role in [("runtime", "runtime"), ("viewer", "reader"), ("stranger", None)]:
            connection.execute(f"CREATE ROLE {user} LOGIN PASSWORD '{PASSWORD}'".encode())
            if role is not None:
                connection.execute(f"GRANT assistant_{role} TO {user}".encode())
