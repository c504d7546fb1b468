"""Hosting the agents inside a test, with models that wait for the test."""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil

from assistant_cli.clock import Clock
from assistant_cli.models import get_model
from assistant_cli.runtime import BUILT_IN, RunOptions, find_built_in, run
from assistant_cli.store import inbox
from assistant_cli.store.answering import Worker
from assistant_cli.store.board import StatusBoard
from assistant_cli.store.database import Database
from assistant_cli.store.leases import Lease

from .conftest import PATIENCE_SECONDS


@asynccontextmanager
async def hosting(
    database: Database, model: str = "offline", clock: Clock | None = None, **options: Any
) -> AsyncIterator[asyncio.Task[None]]:
    """Host the agents as `run` does, without a heartbeat unless one is asked for."""
    agents = options.pop("agents", tuple(BUILT_IN))
    definitions: list[Any] = [find_built_in(a) if isinstance(a, str) else a for a in agents]
    chosen = RunOptions(
        **{"heartbeat": None, "retry_delay": timedelta(milliseconds=10), **options},
        agents=definitions,
    )
    opened = get_model(model, database.dsn, os.environ.get("ASSISTANT_BASE_URL"))
    models = {definition.name: opened for definition in definitions}
    task = asyncio.create_task(run(database, models, chosen, clock))
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def worker_of(database: Database, lease: Lease) -> Worker:
    """Who answers under a lease, without a host."""
    return Worker(StatusBoard(database, lease), lease.agents[0])


async def ask(database: Database, text: str, conversation: str = "main") -> str:
    """Send a message and wait for its reply."""
    message = await inbox.put_message(database, text, conversation=conversation)
    async with asyncio.timeout(PATIENCE_SECONDS):
        return await inbox.wait_for_reply(database, message)


async def rows(database: Database, query: str, *parameters: Any) -> list[Any]:
    """The rows of a query; of one column, its values."""
    async with database.connection() as connection:
        # Without any, a % is none.
        cursor = await connection.execute(query.encode(), parameters or None)
        found = await cursor.fetchall() if cursor.description else []
    return [row[0] if len(row) == 1 else row for row in found]


async def until(condition: Callable[[], Awaitable[object]], what: str = "the condition") -> None:
    """Wait until a condition is true; fail after a while."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not await condition():  # noqa: ASYNC110 (it changes in another process)
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"{what} did not come true") from None


async def until_equal(database: Database, query: str, expected: object) -> None:
    """Wait until a query answers with the rows expected."""
    found: object = None

    async def equal() -> bool:
        nonlocal found
        found = await rows(database, query)
        return found == expected

    try:
        await until(equal)
    except AssertionError:
        assert found == expected


def living(groups: set[int]) -> list[int]:
    """The processes of some groups; whoever adopts orphans may let them lie as zombies."""
    found = []
    for process in psutil.process_iter(["status"]):
        with suppress(ProcessLookupError):
            if os.getpgid(process.pid) in groups and process.info["status"] != "zombie":
                found.append(process.pid)
    return found


class Hold:
    """A model's command that keeps what it is asked, and answers once the test lets it."""

    def __init__(self, folder: Path) -> None:
        self._held = folder / "held"
        self._asked = folder / "asked"
        self._broken = folder / "broken"
        held, asked, broken = (shlex.quote(str(p)) for p in (self._held, self._asked, self._broken))
        self.model = (
            f'command:text=$(cat); printf "%s\\0" "$text" >> {asked}; '
            f"for i in $(seq 1500); do [ -e {held} ] || break; sleep 0.02; done; "
            f"if [ -e {broken} ]; then echo kaput >&2; exit 3; fi; "
            'printf "%s\\n" "$text" | sed "s/^/re: /"'
        )

    def close(self) -> None:
        """From now on the command waits."""
        self._held.touch()

    def open(self) -> None:
        """Let it answer."""
        self._held.unlink(missing_ok=True)

    def break_down(self) -> None:
        """From now on the command fails."""
        self._broken.touch()

    def mend(self) -> None:
        """It answers again."""
        self._broken.unlink(missing_ok=True)

    @property
    def asked(self) -> list[str]:
        """The prompts so far."""
        if not self._asked.exists():
            return []
        return self._asked.read_text("utf-8").split("\0")[:-1]
