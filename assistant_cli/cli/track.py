"""`assistant track`: a command as an agent on the board."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UsageError
from .commands import CommandBehindDashes
from .session import Agent, with_database

if TYPE_CHECKING:
    from ..store.database import Database


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(cls=CommandBehindDashes)(track)


def track(
    agent: Agent,
    command: Annotated[
        list[str] | None, typer.Argument(metavar="-- CMD…", help="The command.")
    ] = None,
    detail: Annotated[
        str | None, typer.Option(help="What the board shows while it runs; default: CMD.")
    ] = None,
) -> None:
    """Run CMD as an agent: running while it runs, then idle or failed; its exit code is CMD's.

    \b
    assistant track backup --detail 'nightly backup' -- restic backup /home
    """

    if not command:
        raise UsageError("write -- and the command to run")

    async def run(database: Database) -> int:
        from ..tracking import track as track_command

        return await track_command(database, agent, command, detail)

    raise typer.Exit(with_database(run))
