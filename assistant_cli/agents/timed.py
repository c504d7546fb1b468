"""Agents whose turns come at their times, or when somebody asks for one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta

from ..messages import Outcome, Turn
from ..store import ticks
from ..store.board import shorten_detail
from .definition import AgentDefinition
from .host import Finish, Host
from .turn_context import TurnContext

log = logging.getLogger(__name__)

_STEADY = timedelta(minutes=1)
"""A clock set back by less than this, as happens now and then, changes nothing."""


class TimedAgent:
    """Ticks by its timetable, anchored to the last tick, whoever made it."""

    def __init__(self, host: Host, definition: AgentDefinition) -> None:
        self.name = definition.name
        self.timeout = definition.timeout
        self.concurrency = 1
        self._host = host
        self._definition = definition
        self._woken = asyncio.Event()
        self._next_tick: datetime | None = None

    async def recover(self, running: Collection[int]) -> None:
        del running
        host = self._host
        await ticks.recover(host.database, self.name, host.lease.token)
        last = await ticks.read_last_tick(host.database, self.name)
        if self._definition.timetable is not None:
            self._next_tick = self._definition.timetable.first(last, host.clock.now())
        await ticks.announce_next(host.database, self.name, host.lease.token, self._next_tick)

    async def claim(self, limit: int) -> Sequence[Turn]:
        del limit
        self._woken.clear()
        turn = await self._begin_tick()
        return [turn] if turn else []

    async def _begin_tick(self) -> Turn | None:
        host = self._host
        now = host.clock.now()
        await self._correct(now)
        due = self._next_tick is not None and self._next_tick <= now
        if not due and not await ticks.is_requested(host.database, self.name):
            return None
        timetable = self._definition.timetable
        following = None if timetable is None else timetable.following(now)
        model = host.models[self.name].name
        turn = await ticks.begin(host.database, self.name, host.lease.token, model, now, following)
        self._next_tick = following
        return turn

    async def _correct(self, now: datetime) -> None:
        """Plan the next tick anew, and say so, if the host's clock was set back."""
        if self._definition.timetable is None or self._next_tick is None:
            return
        corrected = self._definition.timetable.corrected(self._next_tick, now)
        if corrected < self._next_tick - _STEADY:
            log.warning("%s: the clock was set back; the next tick is at %s", self.name, corrected)
            self._next_tick = corrected
            host = self._host
            await ticks.announce_next(host.database, self.name, host.lease.token, corrected)

    def describe(self, turn: Turn) -> str:
        """What the board shows while the turn runs."""
        del turn
        return self._definition.description

    async def show(
        self, running: Sequence[Turn], at_rest: Mapping[str, str | None], *, anew: bool = False
    ) -> None:
        del anew
        entry = at_rest
        for turn in running:
            entry = {"status": "running", "detail": shorten_detail(self.describe(turn))}
        if entry != self._host.board.get_entry(self.name):
            await self._host.board.update(self.name, entry)

    async def execute(self, turn: Turn) -> Finish:
        context = TurnContext(self._host, turn)
        said = await self._definition.perform(context)
        return lambda: self._finish(turn, said, context)

    async def _finish(self, turn: Turn, said: str | None, context: TurnContext) -> Outcome:
        host = self._host
        return await ticks.finish(host.database, host.lease.token, turn, said, context.effects)

    async def fail(self, turn: Turn, outcome: Outcome, error: str) -> None:
        host = self._host
        await ticks.end_without_result(host.database, host.lease.token, turn, outcome, error)

    async def wait(self) -> bool:
        """Wait for the next tick, or for the request of one."""
        return await self._wait_until(self._next_tick)

    async def _wait_until(self, moment: datetime | None) -> bool:
        clock = self._host.clock
        if self._host.until_idle:
            return moment is not None and moment <= clock.now()
        await clock.wait(self._woken, moment)
        return True

    def wake(self) -> None:
        """Look again at what is due."""
        self._woken.set()
