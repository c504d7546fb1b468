"""`assistant schedule`: texts that come at their time."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from ..errors import UsageError
from ..messages import MAIN_CONVERSATION, Action
from . import output
from .commands import Command, Group
from .send import read_message
from .session import JsonOption, with_database

if TYPE_CHECKING:
    from ..store.schedules import CatchUp, Run, Schedule
    from ..timing import Timing

T = TypeVar("T")

app = typer.Typer(
    help="Texts that come at a time, every so often, or as a cron line says.",
    cls=Group,
    no_args_is_help=True,
    rich_markup_mode=None,
)


def register(root: typer.Typer) -> None:
    """Add the group."""
    root.add_typer(app, name="schedule")


Identity = Annotated[str, typer.Argument(metavar="ID", help="Of a schedule, as ls shows it.")]
At = Annotated[
    str | None, typer.Option(metavar="TIME", help="Once, such as 2h, 'tomorrow 9:00', friday 9am.")
]
Every = Annotated[
    str | None,
    typer.Option(metavar="DURATION", help="Every so often, such as 30m or 2h; 1m is the least."),
]
Cron = Annotated[
    str | None, typer.Option(metavar="LINE", help="As five fields of cron say: '0 9 * * 1-5'.")
]
Zone = Annotated[
    str | None,
    typer.Option("--tz", metavar="ZONE", help="Whose clock --at and --cron mean; Europe/Berlin."),
]


_ONCE_OR_SKIP = typer.Option(
    metavar="once|skip", help="For times that nobody ran at: fire once for all, or not."
)


@app.command(cls=Command)
def add(
    text: Annotated[
        str | None, typer.Argument(metavar="TEXT|-", help="The text; - or nothing: from stdin.")
    ] = None,
    at: At = None,
    every: Every = None,
    cron: Cron = None,
    tz: Zone = None,
    conversation: Annotated[
        str, typer.Option("--conversation", "-c", help="The conversation.")
    ] = MAIN_CONVERSATION,
    catch_up: Annotated[str, _ONCE_OR_SKIP] = "once",
    say: Annotated[
        bool, typer.Option("--say", help="Say TEXT as it is, instead of asking the assistant.")
    ] = False,
) -> None:
    """Ask the assistant TEXT at its time, and print the id of the schedule.

    Without --tz, times are of the host's time zone. A time that the clock skips in spring comes
    right after the gap; one that it shows twice in autumn comes once.

    \b
    assistant schedule add --cron '0 9 * * 1-5' 'what is on today?'
    assistant schedule add --at 'tomorrow 9:00' --say 'the train leaves at ten'
    """
    from ..store.schedules import add_schedule

    if [at, every, cron].count(None) != 2:
        raise UsageError("give one of --at, --every and --cron")
    policy = _policy(catch_up)
    timing = _checked(lambda: _plan(at, every, cron, tz, None))
    content = read_message(text)
    action: Action = "say" if say else "ask"
    number = with_database(
        lambda database: add_schedule(
            database, content, timing, conversation=conversation, action=action, catch_up=policy
        )
    )
    output.print_data(str(number))


@app.command(cls=Command)
def ls(
    everything: Annotated[
        bool, typer.Option("--all", "-a", help="Also those that are done or cancelled.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List the schedules and reminders to come, soonest first.

    In a pipe: a line a schedule with id, state, next time, timing, conversation and text,
    separated by tabs.
    """
    from ..store.schedules import list_schedules

    schedules = with_database(lambda database: list_schedules(database, over=everything))
    if as_json:
        output.print_document({"schema": 1, "schedules": list(map(describe, schedules))})
    else:
        output.print_rows(map(_cells, schedules))


@app.command(cls=Command)
def show(identity: Identity, as_json: JsonOption = False) -> None:
    """Show a schedule with its last ten runs, the last first; exit 3 if there is none.

    A run is a due time, fired, skipped or failed, when, how many times were missed, and why it
    failed.
    """
    from ..store.schedules import get_schedule

    number = _number(identity)
    schedule, runs = with_database(lambda database: get_schedule(database, number))
    facts = describe(schedule)
    if as_json:
        described = list(map(_describe_run, runs))
        output.print_document({"schema": 1, "schedule": facts, "runs": described})
        return
    output.print_rows((name, value) for name, value in facts.items() if value is not None)
    output.print_rows(("run", *_run_cells(run)) for run in runs)


@app.command(cls=Command)
def edit(
    identity: Identity,
    text: Annotated[
        str | None, typer.Argument(metavar="TEXT|-", help="Another text; -: from stdin.")
    ] = None,
    at: At = None,
    every: Every = None,
    cron: Cron = None,
    tz: Zone = None,
    catch_up: Annotated[str | None, _ONCE_OR_SKIP] = None,
) -> None:
    """Change a schedule; exit 3 if there is none, or it is done or cancelled.

    --every counts from now. --tz alone is for a cron line: the same line in another zone.

    \b
    assistant schedule edit 7 --cron '30 8 * * 1-5'
    """
    from ..store.schedules import edit_schedule

    number = _number(identity)
    if [at, every, cron].count(None) < 2:
        raise UsageError("give one of --at, --every and --cron")
    retimed = (at, every, cron, tz) != (None,) * 4
    if not retimed and text is None and catch_up is None:
        raise UsageError("give TEXT or an option: what is to change?")
    policy = _policy(catch_up) if catch_up is not None else None
    content = None if text is None else read_message(text)

    def retime(schedule: Schedule) -> Timing:
        return _checked(lambda: _plan(at, every, cron, tz, schedule))

    with_database(
        lambda database: edit_schedule(
            database, number, content=content, catch_up=policy, retime=retime if retimed else None
        )
    )


@app.command(cls=Command)
def cancel(identity: Identity) -> None:
    """Let a schedule or a reminder fire no more; exit 3 if there is none, or it is over."""
    from ..store.schedules import cancel_schedule

    number = _number(identity)
    with_database(lambda database: cancel_schedule(database, number))


@app.command(name="run", cls=Command)
def run_(identity: Identity) -> None:
    """Fire a schedule now, once, and print the id of the message; its times stay."""
    from ..store.firing import run_schedule

    number = _number(identity)
    output.print_data(str(with_database(lambda database: run_schedule(database, number))))


def describe(schedule: Schedule) -> dict[str, Any]:
    """A schedule as documents carry it; fields are only ever added."""
    active = schedule.state == "active"
    return {
        "id": schedule.id,
        "state": schedule.state,
        "next_at": output.iso(schedule.due_at) if active else None,
        "kind": schedule.kind,
        "spec": schedule.spec,
        "zone": schedule.zone,
        "catch_up": schedule.catch_up,
        "action": schedule.action,
        "conversation": schedule.conversation,
        "text": schedule.content,
        "created_at": output.iso(schedule.created_at),
        "fired_at": output.iso(schedule.fired_at),
        "attempts": schedule.attempts,
        "retry_at": output.iso(schedule.retry_at),
        "error": schedule.error,
    }


def _cells(schedule: Schedule) -> tuple[object, ...]:
    timing = " ".join(filter(None, (schedule.kind, schedule.spec, schedule.zone)))
    next_at = schedule.due_at if schedule.state == "active" else "-"
    place = schedule.conversation
    return (schedule.id, schedule.state, next_at, timing, place, schedule.content)


def _describe_run(run: Run) -> dict[str, Any]:
    return {
        "due_at": output.iso(run.due_at),
        "outcome": run.outcome,
        "at": output.iso(run.at),
        "missed": run.missed,
        "requested": run.requested,
        "attempts": run.attempts,
        "error": run.error,
        "message_id": str(run.message_id) if run.message_id else None,
    }


def _run_cells(run: Run) -> tuple[object, ...]:
    return (output.iso(run.due_at), run.outcome, output.iso(run.at), run.missed, run.error)


def _plan(
    at: str | None, every: str | None, cron: str | None, tz: str | None, old: Schedule | None
) -> Timing:
    """The timing that was asked for; what was not, an old schedule has."""
    from ..clock import SystemClock
    from ..timing import host_zone, plan_at, plan_cron, plan_every

    now = SystemClock().now()
    if every is not None:
        if tz is not None:
            raise UsageError("--tz goes with --at and --cron; --every knows no wall clock")
        return plan_every(every, now)
    zone = tz if tz is not None else (old and old.zone) or host_zone(now)
    if at is not None:
        return plan_at(at, zone, now)
    line = old.spec if cron is None and old and old.kind == "cron" else cron
    if line is None:
        raise UsageError("--tz alone is for a cron line; give --at or --cron with it")
    return plan_cron(line, zone, now)


def _checked(plan: Callable[[], T]) -> T:
    try:
        return plan()
    except ValueError as error:
        raise UsageError(str(error)) from None


def _policy(text: str) -> CatchUp:
    if text == "once":
        return "once"
    if text == "skip":
        return "skip"
    raise UsageError(f"--catch-up: it is once or skip, not {text!r}")


def _number(identity: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", identity, re.ASCII):
        raise UsageError(f"{identity!r} is not an id; `assistant schedule ls` shows them")
    return int(identity)
