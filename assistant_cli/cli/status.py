"""`assistant status`: the board for people, pipes and programs."""

from __future__ import annotations

import json
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import AgentFailedError, NotFoundError, StaleError, UsageError
from ..messages import AGENTS
from . import output
from .commands import Command
from .session import (
    TIMEOUT,
    Agents,
    ended_by_signals,
    optional_duration,
    while_read,
    with_database,
)

if TYPE_CHECKING:
    from datetime import timedelta

    from ..store.database import Database
    from ..store.status import AgentRow, Snapshot, Transition


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(cls=Command)(status)


def status(
    agents: Agents = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep showing it.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document, schema 1.")] = False,
    check: Annotated[
        bool,
        typer.Option("--check", help="Exit 4 if one is stale, 6 failed, 3 not running; else 0."),
    ] = False,
    history: Annotated[bool, typer.Option("--history", help="Show the last transitions.")] = False,
    since: Annotated[
        str | None, typer.Option(metavar="DURATION", help="With --history: not older than this.")
    ] = None,
    count: Annotated[
        int | None, typer.Option("-n", min=1, help="With --history: at most so many; 20.")
    ] = None,
    timeout: Annotated[str | None, TIMEOUT] = None,
) -> None:
    """Show what each agent does, since when, and whether its process is still alive.

    In a pipe: a line an agent with agent, status, detail, since, live or stale or -, host and
    pid of its holder, separated by tabs. With --watch: a JSON document a line, a line a change.

    \b
    assistant status --check || notify-send 'the assistant needs a look'
    """
    names = agents or []
    limit = optional_duration(timeout, "--timeout")
    if history:
        if watch or check:
            raise UsageError("--history goes with neither --watch nor --check")
        _show_history(names, since, count or 20, as_json, limit)
    elif since is not None or count is not None:
        raise UsageError("--since and -n go with --history")
    elif watch:
        if check:
            raise UsageError("--check goes without --watch; `assistant wait` waits")
        _keep_showing(names, as_json, limit)
    else:
        _show_once(names, as_json, check, limit)


def _show_once(names: list[str], as_json: bool, check: bool, limit: timedelta | None) -> None:
    from ..store.status import get_snapshot

    snapshot = with_database(get_snapshot, timeout=limit)
    rows = _select(snapshot, names)
    if as_json:
        output.print_document(describe(snapshot, rows))
    elif output.stdout_is_terminal():
        from .status_table import print_table

        print_table(snapshot, rows)
    else:
        output.print_rows(map(_cells, rows))
    if not snapshot.agents and not as_json:
        output.tell("no agent is on the board yet; `assistant run` puts two there")
    if check:
        _check(rows)


def _select(snapshot: Snapshot, names: list[str]) -> list[AgentRow]:
    missing = [name for name in names if snapshot.find(name) is None]
    if missing:
        raise NotFoundError(f"not on the board: {', '.join(missing)}")
    return snapshot.select(names)


def _cells(row: AgentRow) -> tuple[object, ...]:
    return (row.agent, row.status, row.detail, row.since, state_of(row), row.host, row.pid)


def state_of(row: AgentRow) -> str:
    """`live`, `stale`, or `-` where nobody holds the agent."""
    return "live" if row.live else "stale" if row.stale else "-"


def _check(rows: list[AgentRow]) -> None:
    """The exit code of `--check`: the gravest answer there is."""
    stale = [row.agent for row in rows if row.stale]
    if stale:
        raise StaleError(
            f"stale: {', '.join(stale)}; its process is gone, "
            "or has not reached the database for 15s"
        )
    failed = [row.agent for row in rows if row.status == "failed"]
    if failed:
        raise AgentFailedError(f"failed: {', '.join(failed)}")
    # An agent that a script reports has no process to be alive; the two built in have.
    stopped = [row.agent for row in rows if not row.live and row.agent in AGENTS]
    if stopped or not rows:
        raise NotFoundError(f"not running: {', '.join(stopped) or 'no agent is on the board'}")


def describe(snapshot: Snapshot, rows: list[AgentRow]) -> dict[str, Any]:
    """The document of `--json`; fields are only ever added to it."""
    return {
        "schema": 1,
        "now": output.iso(snapshot.now),
        "agents": [_describe_agent(row) for row in rows],
        "inbox": {
            "waiting": snapshot.inbox.waiting,
            "working": snapshot.inbox.working,
            "failed": snapshot.inbox.failed,
            "oldest_seconds": snapshot.inbox.oldest_seconds,
        },
        "heartbeat": {
            "last_tick_at": snapshot.last_tick_at,
            "next_tick_at": None if snapshot.next_tick_at == "off" else snapshot.next_tick_at,
            "paused": snapshot.paused,
        },
        "today": {
            "since": output.iso(snapshot.midnight),
            "requests": snapshot.spent.requests,
            "input_tokens": snapshot.spent.input_tokens,
            "output_tokens": snapshot.spent.output_tokens,
            "cost_usd": output.dollars(snapshot.spent.cost_usd),
        },
    }


def _describe_agent(row: AgentRow) -> dict[str, Any]:
    holder = None
    if row.live or row.stale:
        holder = {"host": row.host, "pid": row.pid, "since": output.iso(row.held_since)}
    return {
        "agent": row.agent,
        "status": row.status,
        "detail": row.detail,
        "since": output.iso(row.since),
        "updated_at": output.iso(row.updated_at),
        "live": row.live,
        "stale": row.stale,
        "holder": holder,
    }


def _keep_showing(names: list[str], as_json: bool, limit: timedelta | None) -> None:
    async def show(database: Database) -> list[int]:
        with ended_by_signals() as received:
            await while_read(_watch(database, names, as_json))
        return received

    for number in with_database(show, timeout=limit):
        raise typer.Exit(128 + number)


async def _watch(database: Database, names: list[str], as_json: bool) -> None:
    from ..store.status import follow_snapshots

    if output.can_redraw() and not as_json:
        from .status_table import watch_table

        await watch_table(database, names)
        return
    shown = None
    async with aclosing(follow_snapshots(database)) as snapshots:
        async for snapshot in snapshots:
            document = describe(snapshot, snapshot.select(names))
            # What only ages is no change.
            lasting = json.loads(json.dumps(document))
            del lasting["now"], lasting["inbox"]["oldest_seconds"]
            if lasting != shown:
                shown = lasting
                await output.write_as_read(output.format_document(document))


def _show_history(
    names: list[str], since: str | None, count: int, as_json: bool, limit: timedelta | None
) -> None:
    from ..store.status import read_transitions

    age = optional_duration(since, "--since")
    events = with_database(
        lambda database: read_transitions(database, names, age, count), timeout=limit
    )
    if as_json:
        output.print_document({"schema": 1, "events": [_describe_event(e) for e in events]})
    elif output.stdout_is_terminal():
        from .status_table import print_history

        print_history(events)
    else:
        output.print_rows((e.at, e.agent, e.status, e.detail) for e in events)


def _describe_event(event: Transition) -> dict[str, Any]:
    return {
        "at": output.iso(event.at),
        "agent": event.agent,
        "status": event.status,
        "detail": event.detail,
    }
