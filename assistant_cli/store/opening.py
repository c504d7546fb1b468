"""Opening the database that is configured, and only if it fits this program."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from ..errors import ConfigurationError, DatabaseUnreachableError
from ..settings import Settings, load_settings
from .connection_string import parse_dsn
from .database import Database
from .migrations import LATEST_VERSION, check_version, migrate, schema_version


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
    if dsn == "":
        raise ConfigurationError("the DSN given is empty; None means the configured database")
    async with open_database(load_settings(dsn, option="the DSN given")) as database:
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
    if settings.embedded:
        await _start_if_down(settings, say)
    revive = _reviver(settings, say) if settings.embedded else None
    database = Database(configured_dsn(settings), revive=revive)
    try:
        version = await _version(database)
        # Only if need be: any user of the server can hold the lock of migrations.
        if version < LATEST_VERSION and (setup or (settings.embedded and version == 0)):
            await migrate(database)
        else:
            check_version(version)
        yield database
    finally:
        await database.close()


async def _version(database: Database) -> int:
    async with database.connection() as connection:
        return await schema_version(connection)


def configured_dsn(settings: Settings) -> str:
    """The connection string of the configured database, whether or not it is up."""
    if settings.database_url is not None:
        try:
            parse_dsn(settings.database_url)
        except ConfigurationError as error:
            raise ConfigurationError(f"{settings.database_source}: {error}") from None
        return settings.database_url
    from ..embedded_postgres import EmbeddedPostgres

    return EmbeddedPostgres(settings.home).dsn()


def _reviver(settings: Settings, say: Callable[[str], None]) -> Callable[[], Awaitable[None]]:
    """Starts an embedded server again that crashed; one that was told to stop stays down."""
    from ..embedded_postgres import EmbeddedPostgres

    server = EmbeddedPostgres(settings.home)

    async def revive() -> None:
        if server.crashed():
            await server.start(say)

    return revive


async def _start_if_down(settings: Settings, say: Callable[[str], None]) -> None:
    """Start the embedded server, but only if nobody answers there."""
    try:
        connection = await Database(configured_dsn(settings)).connect()
    except (DatabaseUnreachableError, ConfigurationError):
        from ..embedded_postgres import EmbeddedPostgres

        await EmbeddedPostgres(settings.home).start(say)
    else:
        await connection.close()
