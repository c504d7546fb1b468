"""The loop that every agent runs in."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta

import pytest

from assistant_cli.agents.host import Finish, Host
from assistant_cli.agents.loop import run_agent
from assistant_cli.messages import Outcome, Turn
from assistant_cli.store import inbox, leases
from assistant_cli.store.answering import MAX_ATTEMPTS
from assistant_cli.store.board import StatusBoard, create_status_board
from assistant_cli.store.database import Database

from .conftest import PATIENCE_SECONDS
from .hosting import hosting, until_equal


class Errand:
    """An agent with one turn, which lasts until the test ends it."""

    name = "errand"
    timeout: timedelta | None = None
    concurrency = 1

    def __init__(self, board: StatusBoard) -> None:
        self._board = board
        self._database = board.database
        self._left = [Turn(1, self.name, "timer", None)]
        self.recoveries = 0
        self.may_end = asyncio.Event()

    async def recover(self, running: Collection[int]) -> None:
        assert not running
        self.recoveries += 1

    async def claim(self, limit: int) -> Sequence[Turn]:
        assert limit == 1
        if self._left:
            # A follower loses its connection at this very moment.
            self._database.losses += 1
        return [self._left.pop()] if self._left else []

    async def show(
        self, running: Sequence[Turn], at_rest: Mapping[str, str | None], *, anew: bool = False
    ) -> None:
        entry = {"status": "running", "detail": "on an errand"} if running else at_rest
        await self._board.update(self.name, entry)

    async def execute(self, turn: Turn) -> Finish:
        await self.may_end.wait()

        async def finish() -> Outcome:
            return "done"

        return finish

    async def fail(self, turn: Turn, outcome: Outcome, error: str) -> None:
        pytest.fail(f"{turn.id} {outcome}: {error}")

    async def wait(self) -> bool:
        return False

    def wake(self) -> None:
        pass


async def test_a_connection_lost_during_a_claim_is_recovered_from_once_there_is_room(
    database: Database,
) -> None:
    lease = await leases.acquire(database, ["errand"])
    board = await create_status_board(database, lease)
    agent = Errand(board)
    host = Host(database=database, board=board, lease=lease, models={})
    async with asyncio.timeout(PATIENCE_SECONDS):
        running = asyncio.create_task(run_agent(agent, host))
        while board.get_entry("errand")["status"] != "running":  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert agent.recoveries == 1
        agent.may_end.set()
        assert await running == 0
    assert agent.recoveries == 2
    assert board.get() == {"errand": {"status": "idle", "detail": None}}


async def test_a_message_of_many_lines_that_fails_holds_up_nobody(database: Database) -> None:
    longest = 0.0

    async def measure() -> None:
        nonlocal longest
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.01)
            longest = max(longest, time.monotonic() - before)

    lines = "\n".join(map(str, range(40_000)))
    async with hosting(database, "command:printf '%04000d' 0 >&2; exit 3"):
        measuring = asyncio.create_task(measure())
        await inbox.put_message(database, lines, conversation="main")
        outcomes = "SELECT outcome FROM assistant.turns"
        await until_equal(database, outcomes, ["failed"] * MAX_ATTEMPTS)
        measuring.cancel()
    # A third of a lease: it is renewed meanwhile.
    assert longest < 5
