"""The execution of a turn: whatever happens to it, it is ended in the database."""

from __future__ import annotations

import asyncio
import logging
from asyncio.tasks import _unregister_task

from ..durations import format_duration
from ..errors import AgentFailedError, AssistantError, LeaseLostError, TurnClosedError
from ..messages import Outcome, Turn
from ..patience import patiently
from ..redaction import without_secrets
from ..store.connection_string import parse_dsn
from ..store.turns import CANCELLED, keepable
from .host import Agent, Finish, Host

log = logging.getLogger(__name__)

_MAX_ERROR_CHARACTERS = 4_000
_RELEASE_SECONDS = 3.0


class TurnCancelledError(AgentFailedError):
    """Somebody asked for the turn to be ended."""


def names(agent: Agent, turn: Turn) -> dict[str, object]:
    """What the log knows a turn by."""
    return {"agent": agent.name, "turn": turn.id}


async def give_up(agent: Agent, turn: Turn) -> None:
    """Close a turn that is cancelled; where that fails, the agent's next holder closes it."""
    try:
        async with asyncio.timeout(_RELEASE_SECONDS):
            await agent.fail(turn, "interrupted", "stopped before it was finished")
    except (AssistantError, TimeoutError) as error:
        reason = str(error) or "the database does not answer"
        log.warning(
            "%s: turn %d is left open: %s", agent.name, turn.id, reason, extra=names(agent, turn)
        )
    else:
        known = {**names(agent, turn), "outcome": "interrupted"}
        log.warning("%s: turn %d interrupted", agent.name, turn.id, extra=known)


async def execute(agent: Agent, host: Host, turn: Turn) -> tuple[Outcome, str | None]:
    """Execute a turn and keep its result; returns its outcome, and why it failed.

    Raises:
        LeaseLostError: another process took the agent over.
    """
    outcome, error = await _attempt(agent, host, turn)
    if error is not None:
        password = parse_dsn(host.database.dsn).get("password")
        error = keepable(without_secrets(error, password))[:_MAX_ERROR_CHARACTERS]
        reason = error
        await patiently(lambda: agent.fail(turn, outcome, reason))
    return outcome, error


async def _attempt(agent: Agent, host: Host, turn: Turn) -> tuple[Outcome, str | None]:
    limit = agent.timeout or host.turn_timeout
    try:
        async with asyncio.timeout(limit.total_seconds()):
            finish = await _execute_cancellably(agent, host, turn)
        return await patiently(finish), None
    except LeaseLostError:
        raise
    except (TurnCancelledError, TurnClosedError) as ended:
        return "interrupted", str(ended)
    except TimeoutError:
        return "timed_out", f"no result within the deadline of {format_duration(limit)}"
    except AssistantError as problem:
        return "failed", str(problem)
    except Exception as problem:
        # A fault of ours must not end the process that holds the other agents as well.
        event = f"{agent.name}: turn {turn.id} met an unforeseen error"
        log.exception("%s", event, extra=names(agent, turn))
        return "failed", f"unforeseen {type(problem).__name__}"


async def _execute_cancellably(agent: Agent, host: Host, turn: Turn) -> Finish:
    """Execute a turn, in a task that a request can cancel without the agent.

    Raises:
        TurnCancelledError: it was.
        AgentFailedError: an earlier turn of the agent has never ended, or it cancelled itself.
    """
    stuck = host.stuck.get(agent.name)
    if stuck is not None and not stuck.done():
        raise AgentFailedError("an earlier turn of it has not ended; a restart of the run ends it")
    task = asyncio.create_task(patiently(lambda: agent.execute(turn)))
    host.executing[turn.id] = task
    try:
        await asyncio.wait({task})
    finally:
        # `Host.cancel` takes a turn out before it cancels it.
        asked = host.executing.pop(turn.id, None) is None
        if not task.done():
            await _end(agent, host, turn, task)
    if task.cancelled():
        raise TurnCancelledError(CANCELLED) if asked else AgentFailedError("it cancelled itself")
    return task.result()


async def _end(agent: Agent, host: Host, turn: Turn, task: asyncio.Task[Finish]) -> None:
    """Cancel the task of a turn; one that ignores it is left behind."""
    task.cancel()
    try:
        await asyncio.wait({task}, timeout=_RELEASE_SECONDS)
    finally:
        if task.done():
            # Or asyncio would log that the exception was never retrieved.
            _ = task.cancelled() or task.exception()
        else:
            log.error("%s: turn %d goes on past its end", agent.name, turn.id)
            host.stuck[agent.name] = task
            # Else asyncio.run would wait for it at the end of the program.
            _unregister_task(task)
            task._log_destroy_pending = False  # type: ignore[attr-defined]
