"""The composition root: settings in, agents running out, everything in one task group."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypeVar

from .agents.conversation import ConversationAgent, conversation
from .agents.definition import AgentDefinition, Interval
from .agents.heartbeat import HeartbeatAgent, Limits, reflect
from .agents.host import Agent, Host
from .agents.loop import run_agent
from .agents.timed import TimedAgent
from .clock import Clock, SystemClock
from .errors import AgentFailedError, AssistantError, ConflictError, DatabaseUnreachableError
from .messages import HEARTBEAT, is_conversation
from .models import Model
from .models.pausing import PausingModel
from .patience import patiently
from .signals import handling, unless_ignored
from .store import leases
from .store.answering import RETRY_DELAY
from .store.board import IDLE, StatusBoard, check_agent, create_status_board
from .store.database import Connection, Database
from .store.follow import Hints, follow
from .store.leases import Lease
from .upkeep import upkeep

log = logging.getLogger(__name__)

T = TypeVar("T")

BUILT_IN = {definition.name: definition for definition in (conversation, reflect)}
"""The agents that are there without anybody writing one."""


def find_built_in(name: str) -> AgentDefinition | None:
    """One of them, or a further worker of the conversation agent, named such as `conversation@b`.

    Raises:
        BadDataError: that is no name for an agent.
    """
    if is_conversation(name):
        return replace(conversation, name=check_agent(name))
    return BUILT_IN.get(name)


_LAST_WRITES_SECONDS = 3.0
_STANDBY_POLL_SECONDS = 2.0


@dataclass(frozen=True)
class RunOptions:
    """How `run` hosts the agents.

    Attributes:
        agents: which of them.
        heartbeat: the time between two heartbeats; None means none.
        limits: what the heartbeat may cost, and when it may speak.
        standby: wait while another process holds them, then take over.
        until_idle: leave when nothing is left to do.
        drain: how long a turn may take to finish after the first signal.
        turn_timeout: the deadline of a turn.
        retry_delay: the pause before a message is tried again.
        concurrency: how many conversations are answered at a time.
    """

    agents: Sequence[AgentDefinition] = tuple(BUILT_IN.values())
    heartbeat: timedelta | None = timedelta(minutes=30)
    limits: Limits = field(default_factory=Limits)
    standby: bool = False
    until_idle: bool = False
    drain: timedelta = timedelta(seconds=20)
    turn_timeout: timedelta = timedelta(minutes=10)
    retry_delay: timedelta = RETRY_DELAY
    concurrency: int = 8

    @property
    def names(self) -> list[str]:
        """The names of the agents."""
        return [definition.name for definition in self.agents]


class StoppedError(AssistantError):
    """A signal ended the process before it was done."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


async def run(
    database: Database,
    models: Mapping[str, Model],
    options: RunOptions,
    clock: Clock | None = None,
) -> None:
    """Host the agents until a signal, or until idle.

    Args:
        models: what answers for each agent, by the agent's name.

    The first SIGINT or SIGTERM lets running turns finish within the drain; the second does not.

    Raises:
        ConflictError: another process holds one of the agents.
        LeaseLostError: another process took them over while they ran.
        AgentFailedError: with `until_idle`, a turn failed.
        StoppedError: there was a second signal, or one with `until_idle`.
    """
    stopping = asyncio.Event()
    with _signals(stopping) as received:
        try:
            await host(database, models, options, stopping, clock)
        except asyncio.CancelledError:
            if len(received) < 2:
                raise
            raise StoppedError("stopped at once, on a second signal", received[-1]) from None
    if received and options.until_idle:
        raise StoppedError("stopped by a signal, perhaps with something left to do", received[0])


async def host(
    database: Database,
    models: Mapping[str, Model],
    options: RunOptions,
    stopping: asyncio.Event,
    clock: Clock | None = None,
) -> None:
    """Host the agents until the event is set, as `run` does, and leave signals alone."""
    lease = await _acquire(database, options, stopping)
    if lease is not None:
        await _hold(database, models, options, lease, clock or SystemClock(), stopping)


@contextmanager
def _signals(stopping: asyncio.Event) -> Iterator[list[int]]:
    """Set the event at the first signal and cancel the caller at the second."""
    task = asyncio.current_task()
    received: list[int] = []

    def handle(number: int) -> None:
        received.append(number)
        if stopping.is_set():
            assert task is not None
            task.cancel()
        else:
            log.info("stopping: running turns may finish; a second signal stops at once")
            stopping.set()

    with handling([signal.SIGINT, signal.SIGTERM, *unless_ignored(signal.SIGHUP)], handle):
        yield received


async def _acquire(
    database: Database, options: RunOptions, stopping: asyncio.Event
) -> Lease | None:
    """Take the leases; None where a signal came first."""
    if not options.standby:
        return await leases.acquire(database, options.names)
    return await _unless_stopped(_stand_by(database, options.names), stopping)


async def _unless_stopped(work: Coroutine[Any, Any, T], stopping: asyncio.Event) -> T | None:
    """What comes of some work; None where a signal came first."""
    working = asyncio.create_task(work)
    signalled = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait({working, signalled}, return_when=asyncio.FIRST_COMPLETED)
        return await working if working.done() else None
    finally:
        working.cancel()
        signalled.cancel()
        await asyncio.gather(working, signalled, return_exceptions=True)


async def _stand_by(database: Database, agents: Sequence[str]) -> Lease:
    refusals: list[str] = []

    async def attempt(_: Connection, __: Hints) -> Lease | None:
        try:
            return await leases.acquire(database, agents)
        except ConflictError as error:
            if not refusals:
                log.info("standing by: %s", error)
            refusals.append(str(error))
            return None

    attempts = follow(database, leases.CHANNEL, attempt, poll=_STANDBY_POLL_SECONDS)
    async with aclosing(attempts):
        return await anext(attempts)


async def _hold(
    database: Database,
    models: Mapping[str, Model],
    options: RunOptions,
    lease: Lease,
    clock: Clock,
    stopping: asyncio.Event,
) -> None:
    board: StatusBoard | None = None
    try:
        opening = patiently(lambda: _open_board(database, lease))
        board = await _unless_stopped(opening, stopping)
        if board is not None:
            await _work(models, options, board, clock, stopping)
    except BaseException:
        with suppress(AssistantError):
            await _leave(database, board, lease)
        raise
    await _leave(database, board, lease)


async def _work(
    models: Mapping[str, Model],
    options: RunOptions,
    board: StatusBoard,
    clock: Clock,
    stopping: asyncio.Event,
) -> None:
    assert board.lease is not None
    host = Host(
        database=board.database,
        board=board,
        lease=board.lease,
        models=_pausing(models, clock),
        turn_timeout=options.turn_timeout,
        retry_delay=options.retry_delay,
        concurrency=options.concurrency,
        until_idle=options.until_idle,
        clock=clock,
        stopping=stopping,
    )
    names = ", ".join(dict.fromkeys(models[agent].name for agent in options.names))
    log.info("hosting %s; the model is %s", " and ".join(options.names), names)
    failed = await _run_agents(host, options)
    if failed and options.until_idle:
        turns = "turn" if failed == 1 else "turns"
        raise AgentFailedError(f"{failed} {turns} failed; `assistant turns ls --failed` shows more")


def _pausing(models: Mapping[str, Model], clock: Clock) -> dict[str, Model]:
    """The same models, each paused for all its agents once its server has refused."""
    pausing = {id(model): PausingModel(model, clock) for model in models.values()}
    return {agent: pausing[id(model)] for agent, model in models.items()}


async def _open_board(database: Database, lease: Lease) -> StatusBoard:
    async with database.connection() as connection:
        await leases.renew(connection, lease)
    return await create_status_board(database, lease)


async def _run_agents(host: Host, options: RunOptions) -> int:
    agents = [_create_agent(definition, host, options) for definition in options.agents]
    try:
        async with asyncio.TaskGroup() as tasks:
            background = [tasks.create_task(work) for work in upkeep(host, agents)]
            workers = [tasks.create_task(run_agent(agent, host)) for agent in agents]
            await _drain(workers, agents, host.stopping, options.drain)
            for task in background:
                task.cancel()
    except BaseExceptionGroup as group:
        raise first_cause(group) from None
    return sum(worker.result() for worker in workers if not worker.cancelled())


def _create_agent(definition: AgentDefinition, host: Host, options: RunOptions) -> Agent:
    if is_conversation(definition.name):
        return ConversationAgent(host, definition)
    if definition.name == HEARTBEAT:
        timetable = None if options.heartbeat is None else Interval(options.heartbeat)
        return HeartbeatAgent(host, replace(definition, timetable=timetable), options.limits)
    return TimedAgent(host, definition)


async def _drain(
    workers: list[asyncio.Task[int]],
    agents: list[Agent],
    stopping: asyncio.Event,
    drain: timedelta,
) -> None:
    """Wait until the agents are done; after a signal, no longer than the drain."""
    signalled = asyncio.create_task(stopping.wait())
    finished = asyncio.gather(*workers, return_exceptions=True)
    awaited: set[asyncio.Future[Any]] = {signalled, finished}
    try:
        await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
        for agent in agents:
            agent.wake()
        _, unfinished = await asyncio.wait(workers, timeout=drain.total_seconds())
        for worker in unfinished:
            worker.cancel()
        await asyncio.wait(workers)
    finally:
        signalled.cancel()


async def _leave(database: Database, board: StatusBoard | None, lease: Lease) -> None:
    """Write idle and give the agents back, as far as the database lets us in a moment.

    Raises:
        AssistantError: it does not; the lease lapses by itself, and the board stays as it is.
    """
    try:
        async with asyncio.timeout(_LAST_WRITES_SECONDS):
            writes = [board.update(agent, IDLE) for agent in lease.agents] if board else []
            results = await asyncio.gather(*writes, return_exceptions=True)
            # Also where one agent was taken over: the others must not wait for the lease to lapse.
            await leases.release(database, lease, settle=True)
        for refused in filter(None, results):
            raise refused
    except TimeoutError:
        raise DatabaseUnreachableError(
            "could not write that the agents have stopped: the database does not answer"
        ) from None
    log.info("stopped; %s released", " and ".join(lease.agents))


def first_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The program's own error in a group, before anything it brought about."""
    leaves: list[BaseException] = []
    for error in group.exceptions:
        leaves += [first_cause(error)] if isinstance(error, BaseExceptionGroup) else [error]
    return next((leaf for leaf in leaves if isinstance(leaf, AssistantError)), leaves[0])
