"""The heartbeat agent: wakes on a timer, delivers what is due, speaks up when there is reason."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from ..active_hours import ActiveHours, start_of_day
from ..messages import HEARTBEAT, SILENCE, Outcome, Turn
from ..patience import patiently
from ..store import firing, heartbeat, ticks
from ..store.status import read_formatted
from ..store.turns import get_spend
from .definition import AgentDefinition, agent
from .desk import as_data
from .host import Finish, Host
from .timed import TimedAgent
from .turn_context import TurnContext

_PATIENCE = timedelta(minutes=15)
"""How long a message may wait before the heartbeat mentions it."""

_DESCRIPTIONS = {"reminder": "delivering reminders", "schedule": "firing schedules"}

_PROMPT = """\
You are the heartbeat of a background assistant. It is {now}. For your information:
{board}
Messages from the user since your last heartbeat: {messages}.
{failures}If there is something the user should hear now, answer with just that.
Otherwise answer exactly: {silence}"""


@agent(name=HEARTBEAT)
async def reflect(turn: TurnContext) -> str:
    """reflecting"""
    news = await patiently(lambda: heartbeat.read_since_last_tick(turn.database))
    board = await patiently(lambda: read_formatted(turn.database))
    failures = "\n".join(news.failures)
    return await turn.ask(
        _PROMPT.format(
            now=turn.now().astimezone().isoformat(" ", "minutes"),
            # Not the host's own board: another process may hold the other agent.
            board=as_data("status board", board),
            messages=news.messages,
            failures=as_data("failures since then", failures) + "\n" if failures else "",
            silence=SILENCE,
        )
    )


@dataclass(frozen=True)
class Limits:
    """What a heartbeat may cost, and when it may speak.

    Attributes:
        active_hours: outside of them a tick is skipped; None: there is no such time.
        daily_tokens: what its turns may use from midnight to midnight; None: any number.
    """

    active_hours: ActiveHours | None = None
    daily_tokens: int | None = None


class HeartbeatAgent(TimedAgent):
    """A timed agent that also fires reminders and schedules, when they are due.

    These also come between ticks, while it reflects, and where the heartbeat is off. The model is
    asked only if something happened since the last tick, or somebody asked for the tick.
    """

    def __init__(self, host: Host, definition: AgentDefinition, limits: Limits) -> None:
        super().__init__(host, definition)
        self._limits = limits
        self._busy_since: datetime | None = None

    async def recover(self, running: Collection[int]) -> None:
        self._busy_since = None
        await super().recover(running)

    async def claim(self, limit: int) -> Sequence[Turn]:
        host = self._host
        self._woken.clear()
        now = host.clock.now()
        due = await firing.next_due(host.database)
        if due is not None and due <= now:
            claimed: Sequence[Turn] = [
                await heartbeat.begin_delivery(host.database, host.lease.token)
            ]
        else:
            claimed = await super().claim(limit)
        if claimed:
            self._busy_since = self._busy_since or now
        return claimed

    def describe(self, turn: Turn) -> str:
        return _DESCRIPTIONS.get(turn.trigger) or super().describe(turn)

    async def execute(self, turn: Turn) -> Finish:
        if turn.trigger in _DESCRIPTIONS:
            return self._delivery(turn)
        if pause := await self._reason_to_rest(turn):
            return partial(self._rest, turn, pause)
        context = TurnContext(self._host, turn)
        if reason := await self._reason_not_to_think(turn):
            return partial(self._finish_tick, turn, None, context, reason)
        async with self._delivering():
            thought = await self._definition.perform(context)
        return partial(self._finish_tick, turn, thought, context)

    def _delivery(self, turn: Turn) -> Finish:
        host = self._host
        now = host.clock.now()
        # What came due while this agent was busy is late, and does not count as missed.
        on_time_from = min(now, self._busy_since or now) - firing.GRACE
        return lambda: heartbeat.deliver(host.database, host.lease.token, turn, now, on_time_from)

    async def _reason_to_rest(self, turn: Turn) -> str | None:
        """Why nothing at all may be said now; None: it may."""
        if turn.trigger == "request":
            return None
        if await heartbeat.is_busy(self._host.database):
            return "a message was being answered"
        paused = await ticks.read_pause(self._host.database, self.name)
        if paused is not None:
            return f"paused {paused}"
        hours = self._limits.active_hours
        if hours is not None and not hours.include(self._host.clock.now()):
            return f"outside the active hours {hours}"
        return None

    async def _reason_not_to_think(self, turn: Turn) -> str | None:
        """Why the model is not to be asked now; None: it may."""
        host, limits = self._host, self._limits
        if limits.daily_tokens is not None:
            zone = limits.active_hours.zone if limits.active_hours else None
            today = start_of_day(host.clock.now(), zone)
            used = (await get_spend(host.database, today, agent=self.name)).tokens
            if used >= limits.daily_tokens:
                return f"{used:,} of {limits.daily_tokens:,} tokens for today are used"
        if turn.trigger != "request" and not await heartbeat.read_since_last_tick(host.database):
            return "nothing has happened since the last heartbeat"
        return None

    async def _rest(self, turn: Turn, reason: str) -> Outcome:
        await self.fail(turn, "skipped", reason)
        return "skipped"

    async def _finish_tick(
        self, turn: Turn, thought: str | None, context: TurnContext, reason: str | None = None
    ) -> Outcome:
        host = self._host
        return await ticks.finish(
            host.database,
            host.lease.token,
            turn,
            thought,
            context.effects,
            skipped=reason,
            report_after=_PATIENCE,
        )

    @asynccontextmanager
    async def _delivering(self) -> AsyncIterator[None]:
        """Deliver what comes due meanwhile: a reminder does not wait for a thought."""
        task = asyncio.create_task(self._deliver_until_cancelled())
        try:
            yield
        finally:
            task.cancel()
            # A delivery that failed here is tried again by the loop, which reports it.
            await asyncio.gather(task, return_exceptions=True)

    async def _deliver_until_cancelled(self) -> None:
        host = self._host
        looked = host.clock.now()
        while True:
            self._woken.clear()
            now = host.clock.now()
            due = await patiently(lambda: firing.next_due(host.database))
            if due is None or due > now:
                await host.clock.wait(self._woken, due)
            else:
                on_time_from = looked - firing.GRACE
                await heartbeat.deliver_at_once(host.database, host.lease.token, now, on_time_from)
            looked = now

    async def wait(self) -> bool:
        """Wait for the next tick or due time, or for news of one."""
        self._busy_since = None
        due = await firing.next_due(self._host.database)
        times = [moment for moment in (self._next_tick, due) if moment is not None]
        return await self._wait_until(min(times, default=None))
