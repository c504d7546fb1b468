"""`assistant heartbeat`: a tick now, a rest, and what came of the last one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import AgentFailedError, summary_of
from ..messages import HEARTBEAT
from . import output
from .commands import Command, Group
from .session import TIMEOUT, JsonOption, duration, optional_duration, with_database

if TYPE_CHECKING:
    from ..store.database import Database
    from ..store.turns import TurnReport

_FAILED = {"failed", "timed_out", "interrupted"}

app = typer.Typer(
    cls=Group,
    help="Ask for a heartbeat, pause them, and see what came of the last one.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def register(root: typer.Typer) -> None:
    """Add the group."""
    root.add_typer(app, name="heartbeat")


@app.command(cls=Command)
def now(
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for its end, and print what it said.")
    ] = False,
    timeout: Annotated[str, TIMEOUT] = "10m",
) -> None:
    """Ask for a heartbeat now, also in a pause, out of hours, or when nothing has happened.

    Its daily tokens hold all the same. Exit 3 where none is running; with --wait, 6 if it fails,
    4 if its process dies.

    \b
    assistant heartbeat now --wait | mail -E -s 'from your assistant' "$USER"
    """
    limit = duration(timeout, "--timeout")

    async def ask(database: Database) -> TurnReport | None:
        from ..store import ticks
        from ..store.turns import read_report

        since = await ticks.request(database, HEARTBEAT)
        if not wait:
            return None
        turn_id = await ticks.wait_for_requested(database, HEARTBEAT, since)
        return await read_report(database, turn_id, pretty=False)

    report = with_database(ask, timeout=limit)
    if report is None:
        return
    turn = report.turn
    if turn.outcome in _FAILED:
        raise AgentFailedError(
            f"turn {turn.id} {turn.outcome.replace('_', ' ')}: {summary_of(turn.error)}"
        )
    said = _said(report)
    if said:
        output.print_data("\n\n".join(said))
    else:
        output.tell(f"{turn.outcome}: {turn.error}" if turn.error else turn.outcome)


@app.command(cls=Command)
def pause(
    for_: Annotated[
        str | None, typer.Option("--for", metavar="DURATION", help="Resume by itself after this.")
    ] = None,
) -> None:
    """Let heartbeats be skipped until `resume`; reminders and schedules come all the same."""
    from ..store import ticks

    length = optional_duration(for_, "--for")
    paused = with_database(lambda database: ticks.pause(database, HEARTBEAT, length))
    output.tell(f"paused {paused}")


@app.command(cls=Command)
def resume() -> None:
    """End a pause; the next heartbeat comes at its time."""
    from ..store import ticks

    resumed = with_database(lambda database: ticks.resume(database, HEARTBEAT))
    output.tell("resumed" if resumed else "it was not paused")


@app.command(cls=Command)
def last(as_json: JsonOption = False) -> None:
    """Show what came of the last heartbeat; exit 3 where there was none.

    In a pipe: a line a fact with its name and value, and a line for each text that it said,
    separated by tabs. `turn` is for `assistant turns show`.
    """

    async def read(database: Database) -> TurnReport:
        from ..store import ticks
        from ..store.turns import read_report

        turn_id = await ticks.find_last_tick(database, HEARTBEAT)
        return await read_report(database, turn_id, pretty=False)

    report = with_database(read)
    facts = _describe(report)
    if as_json:
        output.print_document({"schema": 1, "heartbeat": facts})
        return
    rows = [(name, value) for name, value in facts.items() if name != "said" and value is not None]
    output.print_rows([*rows, *(("said", text) for text in facts["said"])])


def _describe(report: TurnReport) -> dict[str, Any]:
    """A tick as documents carry it; fields are only ever added to it."""
    turn = report.turn
    return {
        "turn": turn.id,
        "trigger": turn.trigger,
        "outcome": turn.outcome,
        "reason": turn.error,
        "started_at": output.iso(turn.started_at),
        "seconds": round(turn.seconds, 3),
        "model": turn.model,
        "input_tokens": turn.input_tokens,
        "output_tokens": turn.output_tokens,
        "cost_usd": output.dollars(turn.cost_usd),
        "said": _said(report),
    }


def _said(report: TurnReport) -> list[str]:
    return [message.content for message in report.messages if message.role == "assistant"]
