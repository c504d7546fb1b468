"""`assistant db`: the database itself."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import typer

from ..errors import ConfigurationError, NotFoundError
from . import output
from .commands import Command, Group
from .session import JsonOption, run_async, settings, with_database

if TYPE_CHECKING:
    from ..embedded_postgres import EmbeddedPostgres
    from ..store.database import Database

app = typer.Typer(cls=Group, help="The database.", no_args_is_help=True, rich_markup_mode=None)


def register(root: typer.Typer) -> None:
    """Add the group."""
    root.add_typer(app, name="db")


@app.command(cls=Command)
def start() -> None:
    """Start the embedded Postgres; every command that needs it does so as well."""
    _embedded()
    with_database(_do_nothing)


@app.command(cls=Command)
def stop() -> None:
    """Stop the embedded Postgres; exit 3 if it was not running.

    A `run` that is up waits until another command has started it again.
    """
    if not run_async(_embedded().stop):
        raise NotFoundError("the embedded Postgres was not running")


@app.command(cls=Command)
def status(as_json: JsonOption = False) -> None:
    """Show which database is used and whether it answers; start nothing. Exit 69 if not."""
    from ..diagnosis import describe_database

    facts = run_async(lambda: describe_database(settings()))
    if as_json:
        output.print_document({"schema": 1, **facts.to_json()})
    else:
        output.print_rows(facts.to_json().items())
    if facts.problem is not None:
        raise facts.problem


@app.command(cls=Command)
def url() -> None:
    """Print the connection string, without its password.

    \b
    psql "$(assistant db url)"
    """
    from ..store.connection_string import redact_dsn
    from ..store.opening import configured_dsn

    output.print_data(redact_dsn(configured_dsn(settings())))


@app.command(cls=Command)
def migrate() -> None:
    """Set up the database for this program, or bring it up to date."""

    async def version(database: Database) -> int:
        from ..store.migrations import schema_version

        async with database.connection() as connection:
            return await schema_version(connection)

    output.tell(f"the database is at version {with_database(version, setup=True)}")


@app.command(cls=Command)
def shell() -> None:
    """Open psql on the database."""
    from ..store.connection_string import parse_dsn, redact_dsn
    from ..store.opening import configured_dsn

    if settings().embedded:
        with_database(_do_nothing)
    dsn = configured_dsn(settings())
    run_async(lambda: _require_answer(dsn))
    # In the environment, the password stays out of the process list.
    password = parse_dsn(dsn).get("password")
    environment = {**os.environ, **({"PGPASSWORD": str(password)} if password else {})}
    program = _find_psql()
    os.execve(program, [program, redact_dsn(dsn)], environment)  # noqa: S606


async def _do_nothing(_: Database) -> None:
    """To open the database is all: that starts the embedded one."""


async def _require_answer(dsn: str) -> None:
    from ..store.database import Database

    await (await Database(dsn).connect()).close()


def _find_psql() -> str:
    found = shutil.which("psql")
    if found is None:
        from ..server_account import bundled_programs

        bundled = bundled_programs() / "psql"
        found = str(bundled) if bundled.exists() else None
    if found is None:
        raise ConfigurationError("there is no psql; install PostgreSQL's client programs")
    return found


def _embedded() -> EmbeddedPostgres:
    from ..embedded_postgres import EmbeddedPostgres

    configured = settings()
    if not configured.embedded:
        raise ConfigurationError(
            f"{configured.database_source} names a database of your own; "
            "this program starts and stops only its embedded one"
        )
    return EmbeddedPostgres(configured.home)
