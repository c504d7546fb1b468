"""A command of the user's as an agent on the board."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from datetime import timedelta

from .child_process import CommandNotExecutableError, CommandNotFoundError, run_command
from .durations import format_duration
from .errors import AssistantError, LeaseLostError
from .patience import patiently
from .redaction import without_secrets
from .store import leases
from .store.board import StatusBoard, check_agent, shorten_detail
from .store.database import Database
from .store.leases import Lease
from .upkeep import keep_board, keep_lease

log = logging.getLogger(__name__)

_LAST_WRITE_SECONDS = 30.0
_AGAIN_SECONDS = 1.0


async def track(database: Database, agent: str, command: Sequence[str], detail: str | None) -> int:
    """Run a command under the lease of an agent; returns the command's exit code.

    The board shows the agent as running meanwhile, then as idle or failed with the exit code
    and the time taken.

    Raises:
        ConflictError: the agent is held by another process; the command was not run.
        CommandNotFoundError, CommandNotExecutableError: it could not be started.
    """
    lease = await leases.acquire(database, [check_agent(agent)])
    board = StatusBoard(database, lease)
    keeping = asyncio.create_task(_keep(board, lease))
    started = asyncio.get_running_loop().time()
    code: int | None = None
    try:
        shown = detail if detail is not None else without_secrets(" ".join(command))
        running = shorten_detail(shown)
        # Idle first, so that `since` is now: a killed holder may have left its own `running`.
        await board.update(agent, {"status": "idle", "detail": None})
        await board.update(agent, {"status": "running", "detail": running})
        code = (await run_command(command)).code
    except (CommandNotFoundError, CommandNotExecutableError) as error:
        code = error.exit_code
        raise
    finally:
        taken = timedelta(seconds=asyncio.get_running_loop().time() - started)
        await _report_end(database, board, lease, code, taken)
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
    return code


async def _keep(board: StatusBoard, lease: Lease) -> None:
    lost = failing = False
    while not lost:
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(keep_lease(board.database, lease))
                tasks.create_task(keep_board(board))
        except* LeaseLostError as errors:
            log.warning("the command runs on, but off the board: %s", errors.exceptions[0])
            lost = True
        except* AssistantError as errors:
            if not failing:
                log.warning("cannot renew the lease, trying on: %s", errors.exceptions[0])
            failing = True
            await asyncio.sleep(_AGAIN_SECONDS)


async def _report_end(
    database: Database, board: StatusBoard, lease: Lease, code: int | None, taken: timedelta
) -> None:
    """Write how the command ended, waiting a while for a database that is away."""
    agent = lease.agents[0]
    how = "interrupted" if code is None else f"exit {code}"
    detail = f"{how} after {format_duration(taken)}"

    async def write() -> None:
        await board.update(agent, {"status": "idle" if code == 0 else "failed", "detail": detail})
        await leases.release(database, lease)

    try:
        async with asyncio.timeout(_LAST_WRITE_SECONDS):
            await patiently(write)
    except (AssistantError, TimeoutError) as error:
        reason = str(error) or "the database does not answer"
        log.warning("the board does not know that %s ended, %s: %s", agent, detail, reason)
