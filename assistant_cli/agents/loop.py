"""The loop that every agent runs in: claim turns, execute them, wait.

The board shows what an agent does from before it begins until it has ended. While the database is
away, the loop waits, and its turns go on.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Mapping, Sequence
from datetime import timedelta

from ..durations import format_duration
from ..errors import DatabaseUnreachableError, summary_of
from ..messages import Outcome, Turn
from ..patience import backoff, patiently
from ..store.board import IDLE, shorten_detail
from .execution import execute, give_up, names
from .host import Agent, Host

log = logging.getLogger(__name__)

_MAX_REASON_CHARACTERS = 200


async def run_agent(agent: Agent, host: Host) -> int:
    """Run an agent until the host stops; returns how many of its turns failed.

    Raises:
        LeaseLostError: another process took the agent over; in an exception group.
    """
    return await _Loop(agent, host).run()


class _Loop:
    """Claims turns while there is room, runs each in a task, and keeps the board true of them."""

    def __init__(self, agent: Agent, host: Host) -> None:
        self._agent = agent
        self._host = host
        self._running: dict[int, Turn] = {}
        self._ended = asyncio.Event()
        self._at_rest = IDLE
        self._failed = 0
        self._failed_in_a_row = 0
        self._resting = False
        self._unreachable = 0
        self._recovered: int | None = None

    async def run(self) -> int:
        """Run until the host stops; returns how many turns failed."""
        try:
            async with asyncio.TaskGroup() as tasks:
                while await self._step(tasks):
                    pass
        except BaseException:
            left = [give_up(self._agent, turn) for turn in self._running.values()]
            await asyncio.gather(*left)
            raise
        return self._failed

    async def _step(self, tasks: asyncio.TaskGroup) -> bool:
        """Do what there is to do, and wait; False: there will be nothing more."""
        self._ended.clear()
        try:
            claimed = await self._claim()
            self._running |= {turn.id: turn for turn in claimed}
            await self._show()
            for turn in claimed:
                tasks.create_task(self._run_turn(turn))
            goes_on = await self._wait()
            self._unreachable = 0
        except DatabaseUnreachableError as error:
            await self._bear(error)
            return True
        return goes_on

    async def _claim(self) -> Sequence[Turn]:
        agent, host = self._agent, self._host
        room = agent.concurrency - len(self._running)
        if host.stopping.is_set() or self._resting or not room:
            return ()
        # A failover may have lost the commit that ended a turn: it would stay open for good.
        losses = host.database.losses
        if self._recovered != losses:
            await agent.recover(self._running.keys())
            self._recovered = losses
            await self._show(anew=True)
        return await agent.claim(room)

    async def _wait(self) -> bool:
        """Wait until there may be something to do; False: there will be nothing more."""
        agent, host = self._agent, self._host
        if self._ended.is_set():
            return True
        # A signal, or a lost connection, during the claim came before this waits, and woke nobody.
        if not host.stopping.is_set() and len(self._running) < agent.concurrency:
            if self._resting:
                await self._rest()
                return True
            if self._recovered != host.database.losses or await agent.wait():
                return True
        if self._running:
            await self._ended.wait()
        return self._ended.is_set()

    async def _rest(self) -> None:
        """Pause after a failure, longer each time in a row."""
        await self._pause(self._failed_in_a_row)
        # A turn that ended during the pause is shown first; then the pause goes on.
        self._resting = self._ended.is_set()

    async def _bear(self, error: DatabaseUnreachableError) -> None:
        if not self._unreachable:
            name = self._agent.name
            log.warning("%s: waiting for the database: %s", name, error, extra={"agent": name})
        # The claim may have been committed all the same: `recover` closes a turn that nobody runs.
        self._recovered = None
        self._unreachable += 1
        await self._pause(self._unreachable)

    async def _pause(self, failures: int) -> None:
        """Pause after so many failures in a row, until the host stops or a turn ends."""
        events = (self._host.stopping, self._ended)
        waits = [asyncio.create_task(event.wait()) for event in events]
        try:
            await asyncio.wait(
                waits, timeout=backoff(failures), return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            for wait in waits:
                wait.cancel()

    async def _run_turn(self, turn: Turn) -> None:
        started = asyncio.get_running_loop().time()
        outcome, error = await execute(self._agent, self._host, turn)
        taken = timedelta(seconds=asyncio.get_running_loop().time() - started)
        # Whoever cancelled a turn knows; its agent has not failed.
        failed = error is not None and outcome != "interrupted"
        self._at_rest = _report(self._agent, turn, outcome, error if failed else None, taken)
        del self._running[turn.id]
        if failed:
            self._failed += 1
            # A delivery needs no pause: a schedule that failed has a later time to be tried again.
            if turn.trigger not in {"reminder", "schedule"}:
                self._failed_in_a_row += 1
                self._resting = True
            await self._show_failure()
        else:
            self._failed_in_a_row = 0
            if outcome == "interrupted":
                await self._show(anew=True)
        self._ended.set()
        self._agent.wake()

    async def _show(self, *, anew: bool = False) -> None:
        await patiently(
            lambda: self._agent.show(list(self._running.values()), self._at_rest, anew=anew)
        )

    async def _show_failure(self) -> None:
        """Show a failure also where other turns go on, for a moment: the timeline keeps it."""
        entry = self._at_rest
        await patiently(lambda: self._host.board.update(self._agent.name, entry))
        await self._show(anew=True)


def _report(
    agent: Agent, turn: Turn, outcome: Outcome, error: str | None, taken: timedelta
) -> Mapping[str, str | None]:
    """Log how a turn ended; returns what the board shows after it."""
    seconds = round(taken.total_seconds(), 3)
    known = {**names(agent, turn), "outcome": outcome, "seconds": seconds}
    event = f"{agent.name}: turn {turn.id} {outcome} after {format_duration(taken)}"
    if error is None:
        log.info("%s", event, extra=known)
        return IDLE
    reason = _without_messages(summary_of(error), turn)
    if len(reason) > _MAX_REASON_CHARACTERS:
        # The whole of it is kept with the turn.
        reason = f"{reason[:_MAX_REASON_CHARACTERS]}…"
    log.warning("%s: %s", event, reason, extra=known)
    detail = f"turn {turn.id} {outcome.replace('_', ' ')}: {reason}"
    return {"status": "failed", "detail": shorten_detail(detail)}


def _without_messages(error: str, turn: Turn) -> str:
    """A reason on one line, without what the turn was asked, which a model may well repeat."""
    reason = " ".join(error.split())
    said = (line for message in turn.messages for line in message.content.splitlines())
    for words in filter(None, (" ".join(line.split()) for line in said)):
        # Looked for first: a message has up to 100,000 lines, and compiling a pattern is slow.
        if words in reason:
            reason = re.sub(rf"(?<!\w){re.escape(words)}(?!\w)", "[the message]", reason)
    return reason
