"""The heartbeat agent: wakes on a timer, delivers what is due, speaks up when there is reason."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta

from ..messages import MAIN_CONVERSATION, Effect, Outcome, Turn
from ..models import SILENCE, Prompt
from ..store import firing, heartbeat
from ..store.board import read_formatted
from . import HEARTBEAT
from .context import build_prompt
from .desk import TurnDesk, as_data
from .loop import Finish, Host

_PATIENCE = timedelta(minutes=15)
"""How long a message may wait before the heartbeat mentions it."""

_DESCRIPTIONS = {"reminder": "delivering reminders", "schedule": "firing schedules"}

_PROMPT = """\
You are the heartbeat of a background assistant. It is {now}. For your information:
{board}
Messages from the user since your last heartbeat: {news}.
If there is something the user should hear now, answer with just that.
Otherwise answer exactly: {silence}"""


class HeartbeatAgent:
    """Ticks `interval` after the last tick, whoever made it; None means never.

    Reminders and schedules fire when they are due, also between ticks and without any. A tick
    that finds a user's message being answered is skipped. The model is asked only if the user
    said something since the last tick.
    """

    name = HEARTBEAT

    def __init__(self, host: Host, interval: timedelta | None) -> None:
        self._host = host
        self._interval = interval
        self._wake = asyncio.Event()
        self._next_tick: datetime | None = None
        self._busy_since: datetime | None = None

    async def recover(self) -> None:
        host = self._host
        self._busy_since = None
        await heartbeat.recover(host.database, host.lease.token)
        last_tick = await heartbeat.read_last_tick(host.database)
        if self._interval is not None:
            self._next_tick = _first_tick(last_tick, self._interval, host.clock.now())
        await heartbeat.announce_next_tick(host.database, host.lease.token, self._next_tick)

    async def claim(self) -> Turn | None:
        host = self._host
        self._wake.clear()
        now = host.clock.now()
        reminder = await heartbeat.next_reminder(host.database)
        if reminder is not None and reminder <= now:
            turn = await heartbeat.begin_delivery(host.database, host.lease.token)
            self._busy_since = self._busy_since or now
            return turn
        if self._interval is None or self._next_tick is None or now < self._next_tick:
            return None
        following = now + self._interval
        turn = await heartbeat.begin_tick(
            host.database, host.lease.token, host.model.name, now, following
        )
        self._next_tick = following
        self._busy_since = self._busy_since or now
        return turn

    def describe(self, turn: Turn) -> str:
        return _DESCRIPTIONS.get(turn.trigger, "reflecting")

    async def execute(self, turn: Turn) -> Finish:
        host = self._host
        token = host.lease.token
        if turn.trigger in _DESCRIPTIONS:
            now = host.clock.now()
            # What came due while this agent was at work was not missed, only late.
            on_time_from = min(now, self._busy_since or now) - firing.GRACE
            return lambda: heartbeat.deliver_reminders(
                host.database, token, turn, now, on_time_from
            )
        if await heartbeat.is_busy(host.database):
            return lambda: self._skip(turn)
        thought, effects = await self._reflect(turn)
        return lambda: heartbeat.finish_tick(
            host.database, token, turn, thought, effects, _PATIENCE
        )

    async def _skip(self, turn: Turn) -> Outcome:
        host = self._host
        await heartbeat.end_without_result(
            host.database, host.lease.token, turn, "skipped", "a message was being answered"
        )
        return "skipped"

    async def _reflect(self, turn: Turn) -> tuple[str | None, Sequence[Effect]]:
        """What the model has to say, if anything, and what it changes."""
        host = self._host
        if not host.model.reflects:
            return None, ()
        news = await heartbeat.count_news(host.database)
        if not news:
            return None, ()
        now = host.clock.now().astimezone().isoformat(" ", "minutes")
        # Not the host's own board: another process may hold the other agent.
        board = as_data("status board", await read_formatted(host.database))
        text = _PROMPT.format(now=now, board=board, news=news, silence=SILENCE)
        desk = TurnDesk(host, turn)
        prompt = Prompt(text, self.name, MAIN_CONVERSATION, turn.id)
        if host.model.talks:
            prompt = await build_prompt(host.database, host.clock, desk, turn, text)
        thought = (await host.model.reply(prompt)).strip()
        return None if thought.lower() in {"", SILENCE} else thought, desk.effects

    async def fail(self, turn: Turn, outcome: Outcome, error: str) -> None:
        host = self._host
        await heartbeat.end_without_result(host.database, host.lease.token, turn, outcome, error)

    async def wait(self) -> bool:
        """Wait for the next tick or reminder, or for news of one."""
        self._busy_since = None
        reminder = await heartbeat.next_reminder(self._host.database)
        times = [moment for moment in (self._next_tick, reminder) if moment is not None]
        if self._host.until_idle:
            return bool(times) and min(times) <= self._host.clock.now()
        await self._host.clock.wait(self._wake, min(times, default=None))
        return True

    def wake(self) -> None:
        """Look again at what is due."""
        self._wake.set()


def _first_tick(last: datetime | None, interval: timedelta, now: datetime) -> datetime:
    """When to tick first, anchored to the last tick.

    An anchor in the future is a clock that was set back. A little is waited for; else one that
    is far off would put the tick off with every restart.
    """
    if last is None or last > now + interval:
        return now
    return min(last, now) + interval
