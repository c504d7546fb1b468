"""The loop that every agent runs in: claim a turn, execute it, end it, wait.

What an agent does stands on the board before it does it. A turn that is claimed is ended in
the database whatever happens to it; while the database is away, the loop waits with what it has.
"""

from __future__ import annotations

import asyncio
import logging
import re
from asyncio.tasks import _unregister_task
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Protocol, TypeVar

from ..clock import Clock, SystemClock
from ..durations import format_duration
from ..errors import AssistantError, DatabaseUnreachableError, LeaseLostError
from ..messages import AgentStatus, Outcome, Turn
from ..models import Model
from ..redaction import without_secrets
from ..store.board import StatusBoard, shorten_detail
from ..store.database import Database, parse_dsn
from ..store.inbox import RETRY_DELAY
from ..store.leases import Lease
from ..store.turns import CANCELLED

log = logging.getLogger(__name__)

T = TypeVar("T")
Finish = Callable[[], Awaitable[Outcome]]

_BACKOFF_SECONDS = (0.0, 0.1, 0.3, 1.0, 2.0, 5.0)
_MAX_ERROR_CHARACTERS = 4_000
_MAX_REASON_CHARACTERS = 200
_RELEASE_SECONDS = 3.0


@dataclass(frozen=True)
class Host:
    """What the process that hosts the agents gives them to work with.

    Attributes:
        models: what answers for each agent, by the agent's name.
        stopping: set when no further turn may be claimed.
        turn_timeout: the deadline of a turn.
        retry_delay: the pause before a message is tried again.
        until_idle: agents leave when they have nothing to do.
        executing: the turns that execute, by id.
        stuck: what goes on although its turn has ended, by the agent's name.
    """

    database: Database
    board: StatusBoard
    lease: Lease
    models: Mapping[str, Model]
    turn_timeout: timedelta = timedelta(minutes=10)
    retry_delay: timedelta = RETRY_DELAY
    until_idle: bool = False
    clock: Clock = field(default_factory=SystemClock)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    executing: dict[int, asyncio.Task[Finish]] = field(default_factory=dict)
    stuck: dict[str, asyncio.Task[Finish]] = field(default_factory=dict)

    def model_of(self, agent: str) -> Model:
        """What answers for an agent."""
        return self.models[agent]

    def cancel(self, turn_id: int) -> None:
        """Cancel a turn that executes here; any other is left alone."""
        # Once: a second time would cut short the ending of what the turn has started.
        task = self.executing.pop(turn_id, None)
        if task is not None:
            task.cancel()


class TurnCancelledError(AssistantError):
    """Somebody asked for the turn to be ended."""

    exit_code = 6


class StuckError(AssistantError):
    """An agent cannot begin a turn: what an earlier one began goes on."""

    exit_code = 6


class Agent(Protocol):
    """A named worker. All its database writes are made under the host's lease.

    `timeout`: the deadline of its turns; None: the host's.
    """

    name: str
    timeout: timedelta | None

    async def recover(self) -> None:
        """Close what an earlier holder left open."""

    async def claim(self) -> Turn | None:
        """The next turn, recorded as running; None where there is nothing to do."""

    def describe(self, turn: Turn) -> str:
        """What the board shows while the turn runs."""

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


async def run_agent(agent: Agent, host: Host) -> int:
    """Run an agent until the host stops; returns how many of its turns failed.

    Raises:
        LeaseLostError: another process took the agent over.
    """
    failed = in_a_row = unreachable = 0
    recovered: int | None = None
    while not host.stopping.is_set():
        try:
            # A failover may have lost that a turn has ended; nobody would end it again.
            losses = host.database.losses
            if recovered != losses:
                await agent.recover()
                recovered = losses
            turn = await agent.claim()
            if turn is None and recovered != host.database.losses:
                continue
            # A signal that came during the claim has woken nobody who would wait here.
            if turn is None and (host.stopping.is_set() or not await agent.wait()):
                break
        except DatabaseUnreachableError as error:
            if not unreachable:
                known = {"agent": agent.name}
                log.warning("%s: waiting for the database: %s", agent.name, error, extra=known)
            # The claim may have been committed all the same; then nobody executes that turn.
            recovered = None
            unreachable += 1
            await _pause(host, unreachable)
            continue
        unreachable = 0
        if turn is not None:
            succeeded = await _run_turn(agent, host, turn)
            failed += not succeeded
            in_a_row = 0 if succeeded else in_a_row + 1
            await _pause(host, in_a_row)
    return failed


async def _pause(host: Host, failures: int) -> None:
    """Pause after so many failures in a row, or until the host stops."""
    if failures:
        with suppress(TimeoutError):
            async with asyncio.timeout(_backoff(failures)):
                await host.stopping.wait()


async def patiently(operation: Callable[[], Awaitable[T]]) -> T:
    """Repeat an operation until the database answers; it must be safe to repeat."""
    failures = 0
    while True:
        try:
            return await operation()
        except DatabaseUnreachableError as error:
            if not failures:
                log.warning("waiting for the database: %s", error)
        failures += 1
        await asyncio.sleep(_backoff(failures))


def _backoff(failures: int) -> float:
    """The seconds to pause after so many failures in a row."""
    return _BACKOFF_SECONDS[min(failures, len(_BACKOFF_SECONDS) - 1)]


async def _run_turn(agent: Agent, host: Host, turn: Turn) -> bool:
    started = asyncio.get_running_loop().time()
    try:
        await _show(agent, host, "running", agent.describe(turn))
        outcome, error = await _execute(agent, host, turn)
    except asyncio.CancelledError:
        await _give_up(agent, turn)
        raise
    seconds = asyncio.get_running_loop().time() - started
    taken = format_duration(timedelta(seconds=seconds))
    known = {**_names(agent, turn), "outcome": outcome, "seconds": round(seconds, 3)}
    # Whoever cancelled a turn knows; its agent has not failed.
    if error is None or outcome == "interrupted":
        log.info("%s: turn %d %s after %s", agent.name, turn.id, outcome, taken, extra=known)
        await _show(agent, host, "idle", None)
        return True
    reason = _shorten_reason(_without_messages(error, turn))
    event = f"{agent.name}: turn {turn.id} {outcome} after {taken}"
    log.warning("%s: %s", event, reason, extra=known)
    await _show(agent, host, "failed", f"turn {turn.id} {outcome.replace('_', ' ')}: {reason}")
    return False


def _names(agent: Agent, turn: Turn) -> dict[str, object]:
    """What the log knows a turn by."""
    return {"agent": agent.name, "turn": turn.id}


def _without_messages(error: str, turn: Turn) -> str:
    """A reason to show: a model's command, or its server, may well repeat what it was asked."""
    reason = " ".join(error.split())
    said = (line for message in turn.messages for line in message.content.splitlines())
    for words in filter(None, (re.escape(" ".join(line.split())) for line in said)):
        reason = re.sub(rf"(?<!\w){words}(?!\w)", "[the message]", reason)
    return reason


def _shorten_reason(error: str) -> str:
    """A reason on one line; the whole of it is kept with the turn."""
    line = " ".join(error.split())
    return line if len(line) <= _MAX_REASON_CHARACTERS else line[:_MAX_REASON_CHARACTERS] + "…"


async def _give_up(agent: Agent, turn: Turn) -> None:
    """Close a turn that is cancelled; what does not succeed here, the next holder does."""
    try:
        async with asyncio.timeout(_RELEASE_SECONDS):
            await agent.fail(turn, "interrupted", "stopped before it was finished")
    except (AssistantError, TimeoutError) as error:
        reason = str(error) or "the database does not answer"
        log.warning(
            "%s: turn %d is left open: %s", agent.name, turn.id, reason, extra=_names(agent, turn)
        )
    else:
        known = {**_names(agent, turn), "outcome": "interrupted"}
        log.warning("%s: turn %d interrupted", agent.name, turn.id, extra=known)


async def _execute(agent: Agent, host: Host, turn: Turn) -> tuple[Outcome, str | None]:
    """Execute a turn and keep its result; returns its outcome, and why it failed."""
    limit = agent.timeout or host.turn_timeout
    try:
        async with asyncio.timeout(limit.total_seconds()):
            finish = await _execute_cancellably(agent, host, turn)
        return await patiently(finish), None
    except LeaseLostError:
        raise
    except TurnCancelledError as request:
        outcome: Outcome = "interrupted"
        error = str(request)
    except TimeoutError:
        outcome = "timed_out"
        error = f"no result within the deadline of {format_duration(limit)}"
    except AssistantError as problem:
        outcome, error = "failed", str(problem)
    except Exception as problem:
        # A fault of ours must not end the process that holds the other agents as well.
        event = f"{agent.name}: turn {turn.id} met an unforeseen error"
        log.exception("%s", event, extra=_names(agent, turn))
        outcome, error = "failed", f"unforeseen {type(problem).__name__}"
    password = parse_dsn(host.database.dsn).get("password")
    error = without_secrets(error, password)[:_MAX_ERROR_CHARACTERS]
    await patiently(lambda: agent.fail(turn, outcome, error))
    return outcome, error


async def _execute_cancellably(agent: Agent, host: Host, turn: Turn) -> Finish:
    """Execute a turn, in a task that a request can cancel without the agent.

    Raises:
        TurnCancelledError: it was.
        StuckError: an earlier turn of the agent has never ended.
    """
    stuck = host.stuck.get(agent.name)
    if stuck is not None and not stuck.done():
        raise StuckError("an earlier turn of it has not ended; a restart of the run ends it")
    task = asyncio.create_task(patiently(lambda: agent.execute(turn)))
    host.executing[turn.id] = task
    try:
        await asyncio.wait({task})
    finally:
        host.executing.pop(turn.id, None)
        if not task.done():
            await _end(agent, host, turn, task)
    if task.cancelled():
        raise TurnCancelledError(CANCELLED)
    return task.result()


async def _end(agent: Agent, host: Host, turn: Turn, task: asyncio.Task[Finish]) -> None:
    """Cancel the task of a turn; one that ignores it is left behind."""
    task.cancel()
    try:
        await asyncio.wait({task}, timeout=_RELEASE_SECONDS)
    finally:
        if task.done():
            # Looked at, or its error would be told as one that nobody looked at.
            _ = task.cancelled() or task.exception()
        else:
            log.error("%s: turn %d goes on past its end", agent.name, turn.id)
            host.stuck[agent.name] = task
            # The end of the program must not wait for it either.
            _unregister_task(task)
            task._log_destroy_pending = False  # type: ignore[attr-defined]


async def _show(agent: Agent, host: Host, status: AgentStatus, detail: str | None) -> None:
    entry = {"status": status, "detail": detail and shorten_detail(detail)}
    await patiently(lambda: host.board.update(agent.name, entry))
