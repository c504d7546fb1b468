"""`assistant run`: host the agents."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ConfigurationError, UsageError
from . import collect_as_usual, output
from .commands import Command
from .session import duration, parsed, settings, with_database

if TYPE_CHECKING:
    from ..agents.definition import AgentDefinition
    from ..models import Model
    from ..runtime import RunOptions
    from ..settings import Settings


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(cls=Command)(run)


_Hosted = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Host only this agent: conversation, heartbeat, a further worker such as "
        "conversation@b, or one of your own as pkg.module:name; may be given several times.",
    ),
]
_Model = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="offline, command:CMD, or such as openai:gpt-5. "
        "[env: ASSISTANT_MODEL; default: offline]",
    ),
]
_Heartbeat = Annotated[
    str | None,
    typer.Option(
        metavar="DURATION|off",
        help="Time between heartbeats. [env: ASSISTANT_HEARTBEAT; default: 30m]",
    ),
]
_Concurrency = Annotated[
    int, typer.Option(min=1, max=100, help="How many conversations are answered at a time.")
]
_Drain = Annotated[
    str, typer.Option(metavar="DURATION", help="Time for a turn to finish after a signal.")
]
_LogFormat = Annotated[
    str, typer.Option(metavar="text|json", help="How events are written to stderr.")
]


def run(
    agent: _Hosted = None,
    model: _Model = None,
    heartbeat: _Heartbeat = None,
    concurrency: _Concurrency = 8,
    standby: Annotated[
        bool, typer.Option("--standby", help="Wait while another process runs, then take over.")
    ] = False,
    until_idle: Annotated[
        bool, typer.Option("--until-idle", help="Leave when nothing is left to do.")
    ] = False,
    drain: _Drain = "20s",
    log_format: _LogFormat = "text",
) -> None:
    """Host the conversation and the heartbeat agent until a signal.

    The first SIGINT or SIGTERM stops taking work, lets a running turn finish and exits 0, with
    --until-idle 130 or 143; the second stops at once. Exit 5 if another process runs already.

    \b
    assistant run --model 'command:llm -m gpt-5'
    """
    from ..runtime import run as host_agents

    _start_log(log_format)
    options = replace(
        options_from(settings(), heartbeat),
        agents=_agents(agent or []),
        concurrency=concurrency,
        standby=standby,
        until_idle=until_idle,
        drain=duration(drain, "--drain"),
    )
    models = models_from(settings(), options.names, model)
    _tell_of_other_models(options.names)
    collect_as_usual()
    with_database(lambda database: host_agents(database, models, options), setup=True)


def _tell_of_other_models(hosted: Iterable[str]) -> None:
    from ..runtime import BUILT_IN

    for name in settings().models.keys() - {*hosted, *BUILT_IN}:
        output.tell(f"config.toml has a model for {name}, which this run does not host")


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
        UsageError: the option is no interval.
        ConfigurationError: a setting of the environment is none.
    """
    from ..active_hours import parse_active_hours
    from ..agents.heartbeat import Limits
    from ..durations import parse_duration, parse_interval
    from ..runtime import RunOptions
    from ..settings import parse_daily_tokens

    setting = partial(parsed, refusal=ConfigurationError)
    if heartbeat is None:
        interval = setting(parse_interval, configured.heartbeat, "ASSISTANT_HEARTBEAT")
    else:
        interval = parsed(parse_interval, heartbeat, "--heartbeat")
    return RunOptions(
        heartbeat=interval,
        limits=Limits(
            setting(parse_active_hours, configured.heartbeat_hours, "ASSISTANT_HEARTBEAT_HOURS"),
            setting(parse_daily_tokens, configured.heartbeat_tokens, "ASSISTANT_HEARTBEAT_TOKENS"),
        ),
        turn_timeout=setting(parse_duration, configured.turn_timeout, "ASSISTANT_TURN_TIMEOUT"),
    )


def models_from(
    configured: Settings, agents: Iterable[str], name: str | None = None
) -> dict[str, Model]:
    """The configured model of each agent, but for a name given as an option.

    Raises:
        ConfigurationError: one cannot be used.
    """
    from ..models import get_model

    @cache
    def opened(model: str) -> Model:
        return get_model(model, configured.database_url, configured.base_url)

    return {agent: opened(configured.model_of(agent) if name is None else name) for agent in agents}


def _agents(references: list[str]) -> list[AgentDefinition]:
    from ..agents.definition import load_agent
    from ..runtime import BUILT_IN, find_built_in

    if any(":" in reference for reference in references):
        # As `python -m` does: a module of the user's lies where the user is. Whoever names none
        # may be in a folder of somebody else. One that is gone holds no module.
        with suppress(FileNotFoundError):
            sys.path.insert(0, str(Path.cwd()))
    chosen: dict[str, AgentDefinition] = {}
    for reference in references or BUILT_IN:
        definition = find_built_in(reference)
        if definition is None and ":" not in reference:
            raise UsageError(
                f"there is no agent {reference!r}; the agents are {', '.join(BUILT_IN)}, further "
                "workers such as conversation@b, and your own as pkg.module:name"
            )
        definition = definition or load_agent(reference)
        if chosen.setdefault(definition.name, definition) != definition:
            raise UsageError(f"two agents are called {definition.name}; give one another name")
    return list(chosen.values())
