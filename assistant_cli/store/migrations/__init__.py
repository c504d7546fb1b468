"""The schema as numbered, up-only steps; `infra/init.sql` is what they come to."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg

from ...crash_points import reach
from ...errors import ConfigurationError
from ..database import Connection, Database
from ..refusals import translate

_LOCK = 7_238_114_905
"""The advisory lock under which migrations run; any number that nobody else uses."""


@dataclass(frozen=True)
class Migration:
    version: int
    name: str
    text: str

    @property
    def script(self) -> str:
        """The step with the record that it was taken."""
        return (
            f"{self.text.rstrip()}\n\n"
            "INSERT INTO assistant.migrations (version, name)\n"
            f"VALUES ({self.version}, '{self.name}') ON CONFLICT DO NOTHING;\n"
        )


def list_migrations() -> Iterator[Migration]:
    """The steps this program knows, in order."""
    for path in sorted(Path(__file__).parent.glob("*.sql")):
        match = re.fullmatch(r"(\d{4})_(\w+)", path.stem)
        assert match is not None, path
        yield Migration(int(match[1]), match[2], path.read_text("utf-8"))


LATEST_VERSION = max(int(path.name[:4]) for path in Path(__file__).parent.glob("*.sql"))


async def schema_version(connection: Connection) -> int:
    """The version a database is at; 0 where the program's schema is missing."""
    try:
        cursor = await connection.execute("SELECT max(version) FROM assistant.migrations")
        row = await cursor.fetchone()
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
        return 0
    except psycopg.Error as error:
        raise translate(error) from error
    return int(row[0] or 0) if row else 0


def check_version(version: int) -> None:
    """Refuse to work on a schema that is older or newer than this program.

    Raises:
        ConfigurationError: it is; the message says what to do.
    """
    if version > LATEST_VERSION:
        raise ConfigurationError(
            f"this database is at version {version}, newer than this program, which knows "
            f"{LATEST_VERSION}; upgrade the program"
        )
    if version < LATEST_VERSION:
        state = "not set up" if version == 0 else f"at the older version {version}"
        raise ConfigurationError(f"this database is {state}; run `assistant db migrate`")


async def migrate(database: Database) -> list[Migration]:
    """Take the steps that are missing, one program at a time; returns those taken.

    Raises:
        ConfigurationError: the database is newer than this program, or holds another `kv`.
        NotPermittedError: the user may not create what is needed.
    """
    async with database.connection(patience=600) as connection, connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        version = await _version_in_transaction(connection)
        if version > LATEST_VERSION:
            check_version(version)
        missing = [step for step in list_migrations() if step.version > version]
        for step in missing:
            await _take(connection, step)
            reach("migration.step")
        reach("migration.before")
    reach("migration.after")
    return missing


async def _take(connection: Connection, step: Migration) -> None:
    try:
        await connection.execute(step.script.encode())
    except psycopg.errors.InsufficientPrivilege:
        raise
    except psycopg.ProgrammingError as error:
        # What is missing, or of another type, is another program's of the same name.
        reason = error.diag.message_primary
        raise ConfigurationError(
            f"what is here already does not fit this program: {reason}; use another database"
        ) from error


async def _version_in_transaction(connection: Connection) -> int:
    # to_regclass, since a failed query would end the transaction.
    cursor = await connection.execute("SELECT to_regclass('assistant.migrations') IS NOT NULL")
    row = await cursor.fetchone()
    return await schema_version(connection) if row and row[0] else 0
