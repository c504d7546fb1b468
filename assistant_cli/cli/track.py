"""`assistant track`: a command as an agent on the board."""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import UsageError
from .commands import CommandBehindDashes
from .session import Agent, with_database


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
    from ..tracking import track as track_command

    if not command:
        raise UsageError("write -- and the command to run")
    raise typer.Exit(
        with_database(lambda database: track_command(database, agent, command, detail))
    )
