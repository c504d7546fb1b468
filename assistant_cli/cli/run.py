"""`assistant run`: host the agents."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from ..durations import parse_interval
from ..errors import UsageError
from . import output
from .commands import Command
from .session import duration, settings, with_database

if TYPE_CHECKING:
    from ..models import Model
    from ..runtime import RunOptions
    from ..settings import Settings
    from ..store.database import Database

_AGENTS = ("conversation", "heartbeat")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(cls=Command)(run)


def run(
    agent: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Host only this agent; may be given twice."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="offline, command:CMD, or such as openai:gpt-5. "
            "[env: ASSISTANT_MODEL; default: offline]",
        ),
    ] = None,
    heartbeat: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION|off",
            help="Time between heartbeats. [env: ASSISTANT_HEARTBEAT; default: 30m]",
        ),
    ] = None,
    standby: Annotated[
        bool, typer.Option("--standby", help="Wait while another process runs, then take over.")
    ] = False,
    until_idle: Annotated[
        bool, typer.Option("--until-idle", help="Leave when nothing is left to do.")
    ] = False,
    drain: Annotated[
        str, typer.Option(metavar="DURATION", help="Time for a turn to finish after a signal.")
    ] = "20s",
    log_format: Annotated[
        str, typer.Option(metavar="text|json", help="How events are written to stderr.")
    ] = "text",
) -> None:
    """Host the conversation and the heartbeat agent until a signal.

    The first SIGINT or SIGTERM stops taking work and lets a running turn finish; the second
    stops at once. Exit 5 if another process runs already.

    \b
    assistant run --model 'command:llm -m gpt-5'
    """
    from ..runtime import run as host_agents

    _start_log(log_format)
    options = replace(
        options_from(settings(), heartbeat),
        agents=_agents(agent or []),
        standby=standby,
        until_idle=until_idle,
        drain=duration(drain, "--drain"),
    )
    chosen = model_from(settings(), model)

    async def host(database: Database) -> None:
        await host_agents(database, chosen, options)

    with_database(host, setup=True)


def _start_log(form: str) -> None:
    from .logs import log_to_stderr

    match form:
        case "text" | "json":
            log_to_stderr(logging.INFO, form)
        case _:
            raise UsageError("--log-format is text or json")
    if form == "json":
        output.tell_as_json()


def options_from(configured: Settings, heartbeat: str | None = None) -> RunOptions:
    """How to host the agents as configured, but for a heartbeat given as an option.

    Raises:
        UsageError: one of the durations is none.
    """
    from ..runtime import RunOptions

    return RunOptions(
        heartbeat=_interval(configured.heartbeat if heartbeat is None else heartbeat),
        turn_timeout=duration(configured.turn_timeout, "the turn timeout"),
    )


def model_from(configured: Settings, name: str | None = None) -> Model:
    """The configured model, but for a name given as an option.

    Raises:
        ConfigurationError: it cannot be used.
    """
    from ..models import get_model

    chosen = configured.model if name is None else name
    return get_model(chosen, configured.database_url, configured.base_url)


def _agents(names: list[str]) -> tuple[str, ...]:
    unknown = sorted(set(names) - set(_AGENTS))
    if unknown:
        raise UsageError(f"there is no agent {unknown[0]!r}; the agents are {', '.join(_AGENTS)}")
    return tuple(name for name in _AGENTS if not names or name in names)


def _interval(text: str) -> timedelta | None:
    try:
        return parse_interval(text)
    except ValueError as error:
        raise UsageError(f"the heartbeat: {error}") from None
