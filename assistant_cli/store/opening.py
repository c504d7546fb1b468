"""Opening the database that is configured, and only if it fits this program."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from ..errors import ConfigurationError, DatabaseUnreachableError
from ..settings import Settings, load_settings
from .database import Database
from .migrations import check_version, migrate, schema_version


@asynccontextmanager
async def connect(dsn: str | None = None) -> AsyncIterator[Database]:
    """Open a database for use as a library.

    Args:
        dsn: a libpq connection string; None means the configured database, else the
            embedded one, which is started if need be.

    Raises:
        ConfigurationError: the DSN is wrong, or `assistant db migrate` has to run first.
        DatabaseUnreachableError: nobody answers.
        NotPermittedError: the database refuses.
    """
    async with open_database(load_settings(dsn)) as database:
        yield database


@asynccontextmanager
async def open_database(
    settings: Settings,
    *,
    setup: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> AsyncIterator[Database]:
    """Open the database of the settings and check that its schema fits.

    Args:
        setup: take the missing migrations first. The program's own embedded database is
            always set up when it is new.
        say: told, as one line, what happens that the user did not ask for.
    """
    database = Database(settings.database_url or await _embedded_dsn(settings, say))
    try:
        version = await _version(database)
        if setup or (settings.embedded and version == 0):
            await migrate(database)
        else:
            check_version(version)
        yield database
    finally:
        await database.close()


async def _version(database: Database) -> int:
    async with database.connection() as connection:
        return await schema_version(connection)


async def _embedded_dsn(settings: Settings, say: Callable[[str], None]) -> str:
    """The DSN of the embedded server, which is started only if nobody answers there."""
    from ..embedded_postgres import EmbeddedPostgres

    server = EmbeddedPostgres(settings.home)
    try:
        connection = await Database(server.dsn()).connect()
    except (DatabaseUnreachableError, ConfigurationError):
        await server.start(say)
    else:
        await connection.close()
    return server.dsn()
