"""`assistant turns`: what the agents did, what it cost, and how to end or repeat it."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, assert_never

import typer

from ..errors import summary_of
from . import output
from .commands import Command, Group
from .session import Count, JsonOption, complete_agents, with_database

if TYPE_CHECKING:
    from ..store.turns import TurnRecord

app = typer.Typer(
    help="The turns of the agents: what each did, and what it cost.",
    cls=Group,
    no_args_is_help=True,
    rich_markup_mode=None,
)


def register(root: typer.Typer) -> None:
    """Add the group."""
    root.add_typer(app, name="turns")


TurnId = Annotated[int, typer.Argument(metavar="ID", min=1, help="A turn.")]

_HEADINGS = (
    "ID",
    "AGENT",
    "TRIGGER",
    "CONVERSATION",
    "OUTCOME",
    "STARTED",
    "TIME",
    "MODEL",
    "IN",
    "OUT",
    "COST",
    "ERROR",
)


@app.command(cls=Command)
def ls(
    count: Count = 20,
    agent: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", autocompletion=complete_agents, help="Only turns of this agent."
        ),
    ] = None,
    failed: Annotated[
        bool, typer.Option("--failed", help="Only those failed, timed out or interrupted.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List the last turns, newest last.

    In a pipe: a line a turn with id, agent, trigger, conversation, outcome, start, seconds,
    model, tokens in and out, cost in USD and the first line of its error, separated by tabs.

    \b
    assistant turns ls --failed
    """
    if agent is not None:
        from ..json_values import check_utf8

        check_utf8(agent, "the agent")
    from ..store.turns import list_turns

    turns = with_database(
        lambda database: list_turns(database, agent=agent, failed=failed, limit=count)
    )
    if as_json:
        output.print_document({"schema": 1, "turns": [describe_turn(turn) for turn in turns]})
    elif output.stdout_is_terminal():
        _print_table(turns)
    else:
        output.print_rows(map(_cells, turns))


def describe_turn(turn: TurnRecord) -> dict[str, Any]:
    """A turn as documents carry it; fields are only ever added to it."""
    return {
        "id": turn.id,
        "agent": turn.agent,
        "trigger": turn.trigger,
        "conversation": turn.conversation,
        "outcome": turn.outcome,
        "model": turn.model,
        "started_at": output.iso(turn.started_at),
        "ended_at": output.iso(turn.ended_at),
        "cancelled_at": output.iso(turn.cancelled_at),
        "seconds": round(turn.seconds, 3),
        "requests": turn.requests,
        "input_tokens": turn.input_tokens,
        "output_tokens": turn.output_tokens,
        "cost_usd": output.dollars(turn.cost_usd),
        "error": turn.error,
    }


def _cells(turn: TurnRecord) -> tuple[object, ...]:
    return (
        turn.id,
        turn.agent,
        turn.trigger,
        turn.conversation,
        turn.outcome,
        turn.started_at,
        f"{turn.seconds:.3f}",
        turn.model,
        turn.input_tokens,
        turn.output_tokens,
        None if turn.cost_usd is None else f"{turn.cost_usd:f}",
        turn.error and summary_of(turn.error),
    )


def _print_table(turns: list[TurnRecord]) -> None:
    """Print turns under headings; a column with nothing in it is left out."""
    from ..durations import format_duration

    rows = []
    for turn in turns:
        row = list(_cells(turn))
        row[6] = format_duration(timedelta(seconds=turn.seconds))
        row[8:10] = [turn.input_tokens or None, turn.output_tokens or None]
        rows.append(row)
    columns = [column for column in zip(_HEADINGS, *rows, strict=True) if any(column[1:])]
    output.print_rows(zip(*columns, strict=True))


@app.command(cls=Command)
def show(turn_id: TurnId, as_json: JsonOption = False) -> None:
    """Show all of a turn: its facts, its messages, and what a language model was sent and said.

    In a pipe: a line a fact with its name and value; then a line a message with message, time,
    conversation, role, state and text; then a line a step with step, position, kind, time and
    content as JSON; all separated by tabs. Exit 3 where there is no such turn.

    \b
    assistant turns show 17 --json | jq .steps
    """
    from ..store.turns import read_report
    from . import turn_report

    pretty = output.stdout_is_terminal() and not as_json
    report = with_database(lambda database: read_report(database, turn_id, pretty=pretty))
    if as_json:
        turn_report.print_document(report)
    elif pretty:
        turn_report.print_readable(report)
    else:
        turn_report.print_lines(report)


@app.command(cls=Command)
def cancel(turn_id: TurnId) -> None:
    """Ask for a running turn to be ended; its messages become failed and are not tried again.

    Of a turn that has ended, give up the messages it failed on: `status` counts them no longer.
    Exit 5 where there are none, 3 where there is no such turn.
    """
    from ..store.answering import cancel_turn

    match with_database(lambda database: cancel_turn(database, turn_id)):
        case "asked":
            output.tell(f"turn {turn_id} was asked to end")
        case "closed":
            output.tell(f"no process ran turn {turn_id} any more; it is closed")
        case "given up":
            output.tell(f"the failed messages of turn {turn_id} are given up")
        case never:
            assert_never(never)


@app.command(cls=Command)
def retry(turn_id: TurnId) -> None:
    """Let the failed messages of a turn wait again, as if they had never been tried.

    Exit 5 where it has none, 3 where there is no such turn.
    """
    from ..store.answering import retry_turn

    waiting = with_database(lambda database: retry_turn(database, turn_id))
    output.tell("1 message waits again" if waiting == 1 else f"{waiting} messages wait again")
