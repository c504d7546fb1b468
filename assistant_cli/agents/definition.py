"""An agent is a function: what it does in a turn, and when its turns come."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from importlib import import_module
from pathlib import Path
from traceback import extract_tb
from typing import TYPE_CHECKING

from ..clock import SystemClock
from ..durations import parse_duration, parse_interval
from ..errors import (
    AgentFailedError,
    AssistantError,
    BadDataError,
    ConfigurationError,
    DatabaseUnreachableError,
    LeaseLostError,
    UsageError,
)
from ..messages import AGENTS, check_content, is_conversation
from ..store.board import check_agent
from ..timing import host_zone, plan_cron

if TYPE_CHECKING:
    from .turn_context import TurnContext

Work = Callable[["TurnContext"], Awaitable[str | None]]
"""What an agent does in a turn; what it returns is said, None or nothing but space is silence."""

_REFERENCE = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*:[^\W\d]\w*")


@dataclass(frozen=True)
class Interval:
    """A tick `length` after the last one."""

    length: timedelta

    def first(self, last: datetime | None, now: datetime) -> datetime:
        """When to tick first, anchored to the last tick.

        A last tick in the future means that the clock was set back since. Where it is less than
        `length` ahead, the tick is `length` from now; further ahead it is at once, or each restart
        would put it off again.
        """
        if last is None or last > now + self.length:
            return now
        return min(last, now) + self.length

    def following(self, now: datetime) -> datetime:
        """The tick after one at `now`."""
        return now + self.length

    def corrected(self, tick: datetime, now: datetime) -> datetime:
        """The next tick, where the clock was set back since it was planned."""
        return min(tick, now + self.length)


@dataclass(frozen=True)
class CronLine:
    """A tick whenever a cron line is due in a zone; those missed are made up for once.

    `zone`: an IANA name; None: the host's, which a run takes as it begins.
    """

    line: str
    zone: str | None = None

    def first(self, last: datetime | None, now: datetime) -> datetime:
        """When to tick first, anchored to the last tick."""
        return self.following(now if last is None else min(last, now))

    def following(self, now: datetime) -> datetime:
        """The first due time after `now`."""
        return plan_cron(self.line, self.zone or host_zone(now), now).due_at

    def corrected(self, tick: datetime, now: datetime) -> datetime:
        """The same tick: a time of day that comes again, as the clock was set back, is the same."""
        del now
        return tick


@dataclass(frozen=True)
class AgentDefinition:
    """An agent before anybody hosts it.

    Attributes:
        name: what the board and the turns call it.
        work: what it does in a turn.
        timetable: when its turns come; None: never by themselves.
        timeout: the deadline of its turns; None: that of all turns.
    """

    name: str
    work: Work
    timetable: Interval | CronLine | None = None
    timeout: timedelta | None = None

    @property
    def description(self) -> str:
        """What the board shows while a turn runs: the first line of the function's docstring."""
        return (inspect.getdoc(self.work) or "at work").partition("\n")[0]

    async def perform(self, turn: TurnContext) -> str | None:
        """Do the work of a turn; nothing that it raises ends more than the turn.

        Raises:
            AssistantError: it failed, or returned what cannot be said.
        """
        try:
            said = await self.work(turn)
        except (DatabaseUnreachableError, LeaseLostError) as problem:
            # Not tried again, as the loop does: the function may have used a database of its own,
            # and what it has done already it must not do twice.
            raise AgentFailedError(str(problem)) from problem
        except AssistantError:
            raise
        except BaseException as problem:
            task = asyncio.current_task()
            if isinstance(problem, asyncio.CancelledError) and task and task.cancelling():
                raise
            raise AgentFailedError(_describe(problem)) from problem
        if said is None:
            return None
        if not isinstance(said, str):
            raise AgentFailedError(
                f"{self.name} returned {type(said).__name__}; return text or None"
            )
        if said.strip():
            check_content(said)
        return said


def _describe(problem: BaseException) -> str:
    """What went wrong in an agent, and where, on one line."""
    place = extract_tb(problem.__traceback__)[-1]
    try:
        text = str(problem)
    except BaseException:
        # An exception whose text cannot be made must not end more than the turn either.
        text = ""
    what = f"{type(problem).__name__}: {text}".partition("\n")[0].removesuffix(": ")
    return f"{what} ({Path(place.filename).name} line {place.lineno})"


def agent(
    *misused: object,
    name: str | None = None,
    every: str | None = None,
    cron: str | None = None,
    tz: str | None = None,
    timeout: str | None = None,
) -> Callable[[Work], AgentDefinition]:
    """Make an agent of an async function, for `assistant run --agent pkg.module:name`.

    The function gets a `TurnContext`. What it returns is said to the user, None is silence; what
    it raises fails the turn, with the reason on the board.

    Args:
        name: what the board calls it; default: the function's name.
        every: the time between two turns, such as `10m`.
        cron: a cron line, instead of `every`.
        tz: the IANA name of the zone of the cron line; default: the host's.
        timeout: the deadline of a turn, such as `1m`; default: that of all turns.

    Raises:
        ValueError: one of these cannot be understood.
    """
    if misused:
        raise ValueError("write @agent(every='10m'), with parentheses")
    _check_combination(every, cron, tz)

    def define(work: Work) -> AgentDefinition:
        if not inspect.iscoroutinefunction(work):
            raise ValueError(f"{work.__name__} is no async function")
        return AgentDefinition(
            name=_check_name(name or work.__name__),
            work=work,
            timetable=_timetable(every, cron, tz),
            timeout=None if timeout is None else parse_duration(timeout),
        )

    return define


def _check_combination(every: str | None, cron: str | None, tz: str | None) -> None:
    if every is not None and cron is not None:
        raise ValueError("give one of every and cron")
    if tz is not None and cron is None:
        raise ValueError("tz goes with cron; every knows no wall clock")


def _check_name(name: str) -> str:
    try:
        return check_agent(name)
    except BadDataError as error:
        raise ValueError(str(error)) from None


def _timetable(every: str | None, cron: str | None, tz: str | None) -> Interval | CronLine | None:
    if cron is not None:
        # A malformed line is refused now, and not when its time comes; any zone and time will do.
        plan_cron(cron, tz or "UTC", datetime.fromisoformat("2026-01-01T00:00Z"))
        return CronLine(cron, tz)
    length = None if every is None else parse_interval(every)
    return None if length is None else Interval(length)


def load_agent(reference: str) -> AgentDefinition:
    """The agent that `pkg.module:name` refers to.

    Raises:
        UsageError: it is of another form.
        ConfigurationError: there is none, or it cannot be hosted.
    """
    if not _REFERENCE.fullmatch(reference):
        raise UsageError(f"{reference!r} is no agent; write it like pkg.module:name")
    module_name, _, attribute = reference.partition(":")
    try:
        found = getattr(import_module(module_name), attribute, None)
    except (Exception, SystemExit) as error:
        # Whatever a module of the user's does when it is imported.
        reason = str(error).partition("\n")[0]
        raise ConfigurationError(
            f"cannot import {module_name}: {type(error).__name__}: {reason}"
        ) from error
    if found is None:
        raise ConfigurationError(f"there is no {attribute} in {module_name}")
    if not isinstance(found, AgentDefinition):
        raise ConfigurationError(
            f"{reference} is no agent; write @agent(every='10m') before an async function"
        )
    if found.name in AGENTS or is_conversation(found.name):
        raise ConfigurationError(f"{reference}: the name {found.name} is taken; give it another")
    if found.timetable is None:
        raise ConfigurationError(f"{reference} has no time; write @agent(every='10m') or cron")
    now = SystemClock().now()
    try:
        found.timetable.following(now)
    except ValueError as error:
        raise ConfigurationError(f"{reference}: {error}") from None
    if isinstance(found.timetable, CronLine) and found.timetable.zone is None:
        # The host's zone is looked up once: later its name may not be known any more.
        return replace(found, timetable=replace(found.timetable, zone=host_zone(now)))
    return found
