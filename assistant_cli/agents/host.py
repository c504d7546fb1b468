"""What a process that hosts agents gives them, and what it asks of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Protocol

from ..clock import Clock, SystemClock
from ..messages import Outcome, Turn
from ..models import Model
from ..store.answering import RETRY_DELAY
from ..store.board import StatusBoard
from ..store.database import Database
from ..store.leases import Lease

Finish = Callable[[], Awaitable[Outcome]]


@dataclass(frozen=True)
class Host:
    """What the process that hosts the agents gives them to work with.

    Attributes:
        models: what answers for each agent, by the agent's name.
        stopping: set when no further turn may be claimed.
        turn_timeout: the deadline of a turn.
        retry_delay: the pause before a message is tried again.
        concurrency: how many conversations are answered at a time.
        until_idle: agents leave when they have nothing to do.
        executing: the turns that execute, by id.
        stuck: tasks that ignored their cancellation and go on, by the agent's name.
    """

    database: Database
    board: StatusBoard
    lease: Lease
    models: Mapping[str, Model]
    turn_timeout: timedelta = timedelta(minutes=10)
    retry_delay: timedelta = RETRY_DELAY
    concurrency: int = 8
    until_idle: bool = False
    clock: Clock = field(default_factory=SystemClock)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    executing: dict[int, asyncio.Task[Finish]] = field(default_factory=dict)
    stuck: dict[str, asyncio.Task[Finish]] = field(default_factory=dict)

    def cancel(self, turn_id: int) -> None:
        """Cancel a turn that executes here; any other is left alone."""
        # Only once: a second cancellation would interrupt the turn's own clean-up.
        task = self.executing.pop(turn_id, None)
        if task is not None:
            task.cancel()


class Agent(Protocol):
    """A named worker. All its database writes are made under the host's lease.

    `timeout`: the deadline of its turns; None: the host's.
    `concurrency`: how many of its turns may run at a time.
    """

    name: str
    timeout: timedelta | None
    concurrency: int

    async def recover(self, running: Collection[int]) -> None:
        """Close the turns that are open and do not run here, such as those of an earlier holder."""

    async def claim(self, limit: int) -> Sequence[Turn]:
        """The next turns, recorded as running; none where there is nothing to do."""

    async def show(
        self, running: Sequence[Turn], at_rest: Mapping[str, str | None], *, anew: bool = False
    ) -> None:
        """Correct the agent's entry on the board if it is not true: `at_rest` while no turn runs.

        `anew`: it may be wrong although it looks right, since a turn ended without a reply, or
        something else was written there.
        """

    async def execute(self, turn: Turn) -> Finish:
        """The long part; called again where the database goes away before the model is asked.

        No connection is held meanwhile, and nothing is kept yet.
        Returns what keeps the result in one transaction; it may be called again after a
        lost connection.
        """

    async def fail(self, turn: Turn, outcome: Outcome, error: str) -> None:
        """End a turn that has no result."""

    async def wait(self) -> bool:
        """Wait until there may be work; False where none will come by itself."""

    def wake(self) -> None:
        """End the wait: there may be work."""
