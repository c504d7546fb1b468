"""`assistant report` and `wait`: the board for scripts."""

from __future__ import annotations

from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from ..errors import AgentFailedError, DeadlinePassedError, StaleError, UsageError
from ..messages import AgentStatus
from .commands import Command
from .session import TIMEOUT, Agent, complete_agents, duration, with_database

if TYPE_CHECKING:
    from ..store.database import Database
    from ..store.status import AgentRow

_STATES = ("idle", "running", "failed", "live", "stale", "stopped")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(cls=Command)(report)
    app.command(cls=Command)(wait)


def _complete_statuses(incomplete: str) -> list[str]:
    return [status for status in get_args(AgentStatus) if status.startswith(incomplete)]


def report(
    agent: Agent,
    status: Annotated[
        str, typer.Argument(autocompletion=_complete_statuses, help="idle, running or failed.")
    ],
    detail: Annotated[str | None, typer.Argument(help="What it is doing.")] = None,
) -> None:
    """Put the status of an agent of your own on the board.

    Refused with exit 5 while another process holds the agent.

    \b
    assistant report backup running 'copying /home'
    """
    if status not in get_args(AgentStatus):
        raise UsageError(f"{status!r} is no status; it is idle, running or failed")

    async def write(database: Database) -> None:
        from ..store.board import StatusBoard, check_agent
        from ..store.leases import forget_dead_holder

        await forget_dead_holder(database, check_agent(agent))
        await StatusBoard(database).update(agent, {"status": status, "detail": detail})

    with_database(write)


def _complete_states(incomplete: str) -> list[str]:
    begun = incomplete[: incomplete.rfind(",") + 1]
    return [begun + state for state in _STATES if (begun + state).startswith(incomplete)]


_states_option = partial(typer.Option, metavar="STATE[,STATE]", autocompletion=_complete_states)


def wait(
    agents: Annotated[list[str], typer.Argument(autocompletion=complete_agents)],
    wanted: Annotated[str, _states_option("--for", help=f"One of {', '.join(_STATES)}.")],
    fail_on: Annotated[
        str | None, _states_option(help="Exit 6 (4 for stale) when one is seen.")
    ] = None,
    any_: Annotated[bool, typer.Option("--any", help="One of the agents is enough.")] = False,
    timeout: Annotated[str, TIMEOUT] = "60s",
) -> None:
    """Wait until agents are in a state, also agents that are not on the board yet.

    idle, running and failed: what the board says, unless the process that said so is gone; an
    agent that was stopped is idle. live: held by a process; stale: its process is gone; stopped:
    held by nobody.

    \b
    assistant wait heartbeat --for idle --fail-on failed --timeout 5m
    """
    targets, failures = _states(wanted, "--for"), _states(fail_on or "", "--fail-on")
    enough = any if any_ else all
    seen: dict[str, str] = {}

    async def follow(database: Database) -> None:
        from ..store.status import follow_snapshots

        async with aclosing(follow_snapshots(database)) as snapshots:
            async for snapshot in snapshots:
                rows = [snapshot.find(agent) for agent in agents]
                seen.update(zip(agents, map(_describe, rows), strict=True))
                _refuse(agents, rows, failures)
                if enough(_matches(row, targets) for row in rows):
                    return

    try:
        with_database(follow, timeout=duration(timeout, "--timeout"))
    except DeadlinePassedError:
        found = ", ".join(f"{agent} {state}" for agent, state in seen.items())
        raise DeadlinePassedError(
            f"not {wanted} within {timeout}: {found or 'the database did not answer'}"
        ) from None


def _states(text: str, option: str) -> set[str]:
    states = {part.strip() for part in text.split(",") if part.strip()}
    unknown = sorted(states - set(_STATES))
    if unknown or (not states and option == "--for"):
        raise UsageError(f"{option} takes states of {', '.join(_STATES)}")
    return states


def _refuse(agents: list[str], rows: list[AgentRow | None], failures: set[str]) -> None:
    for agent, row in zip(agents, rows, strict=True):
        if row is not None and _matches(row, failures):
            what = _describe(row)
            detail = f": {row.detail}" if row.detail else ""
            kind = StaleError if row.stale else AgentFailedError
            raise kind(f"{agent} {what}{detail}")


def _describe(row: AgentRow | None) -> str:
    if row is None:
        return "is not on the board"
    return "is stale" if row.stale else f"is {row.status}"


def _matches(row: AgentRow | None, states: set[str]) -> bool:
    if row is None:
        return "stopped" in states
    facts = {
        # First, since another program may have written one of the words below.
        str(row.status): not row.stale,
        "live": row.live,
        "stale": row.stale,
        "stopped": not row.live and not row.stale,
    }
    return any(facts.get(state, False) for state in states)
