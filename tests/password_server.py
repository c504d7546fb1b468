"""A server that asks everybody for a password, set up for this program."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from assistant_cli.store.database import Database
from assistant_cli.store.migrations import migrate

from .postgres_server import OWNER, PASSWORD, PostgresServer, server_folder

ROLES = Path(__file__).parent.parent / "infra" / "roles.sql"


@dataclass(frozen=True)
class PasswordServer:
    """A server whose database `app` is set up for this program.

    Of its users, `runtime` has the role of one that runs the agents, `viewer` that of a reader,
    and `stranger` none.
    """

    port: int

    def url(self, user: str = OWNER, password: str = PASSWORD, database: str = "app") -> str:
        return f"postgresql://{user}:{password}@127.0.0.1:{self.port}/{database}"


@contextmanager
def asking_for_passwords() -> Iterator[PasswordServer]:
    with server_folder() as folder:
        server = PostgresServer(folder, "data")
        server.create()
        try:
            server.start()
            yield set_up(server)
        finally:
            server.stop()


@contextmanager
def primary_and_standby() -> Iterator[tuple[PostgresServer, PostgresServer]]:
    """Such a server, and another that replicates it."""
    with server_folder() as folder:
        primary, standby = PostgresServer(folder, "primary"), PostgresServer(folder, "standby")
        primary.create()
        try:
            primary.start()
            set_up(primary)
            standby.copy(primary, "standby")
            standby.start()
            yield primary, standby
        finally:
            primary.stop()
            standby.stop()


def set_up(server: PostgresServer) -> PasswordServer:
    """Make the database and its users."""
    with psycopg.connect(server.admin_dsn, autocommit=True) as connection:
        connection.execute("CREATE DATABASE app")
    known = PasswordServer(server.port)

    async def set_up_schema() -> None:
        database = Database(known.url())
        await migrate(database)
        await database.close()

    asyncio.run(set_up_schema())
    with psycopg.connect(known.url(), autocommit=True) as connection:
        for _ in range(2):  # it can run again
            connection.execute(ROLES.read_bytes())
        for user, role in [("runtime", "runtime"), ("viewer", "reader"), ("stranger", None)]:
            connection.execute(f"CREATE ROLE {user} LOGIN PASSWORD '{PASSWORD}'".encode())
            if role is not None:
                connection.execute(f"GRANT assistant_{role} TO {user}".encode())
    return known
