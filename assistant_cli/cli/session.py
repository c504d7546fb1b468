"""The one bridge from commands to the asynchronous library, and what commands share."""

from __future__ import annotations

import os
import re
import signal
import stat
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer

from ..errors import AssistantError, ClosedPipeError, DeadlinePassedError, UsageError
from .output import tell

if TYPE_CHECKING:
    from types import FrameType

    from ..settings import Settings
    from ..store.database import Database

T = TypeVar("T")

_PLAIN = re.compile(r"[\w./:@%+=,^-]+")

INTERRUPTED = 130
"""The exit code after Ctrl-C, as shells have it."""

_database_url: str | None = None


def configure(database_url: str | None) -> None:
    """Keep the option of the command line for the settings of this process."""
    global _database_url  # noqa: PLW0603 (an option of the whole process, set once)
    _database_url = database_url


@cache
def settings() -> Settings:
    """The settings of this process, read when they are needed: help needs none."""
    from ..settings import load_settings

    return load_settings(_database_url)


def run_async(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run asynchronous work to its end, or until Ctrl-C."""
    import asyncio

    runner = asyncio.Runner()
    try:
        # The loop first: a coroutine that Ctrl-C keeps from being awaited would warn of that, as
        # would a loop that is half built.
        with at_ctrl_c(_leave_at_once):
            loop = runner.get_loop()
        loop.getaddrinfo = _look_up  # type: ignore[method-assign]
        return runner.run(work())
    finally:
        # What was cancelled ends within seconds; a second Ctrl-C meanwhile must not be a traceback.
        with at_ctrl_c(_leave_at_once):
            runner.close()


def _leave_at_once(*_: object) -> NoReturn:
    os._exit(INTERRUPTED)


async def _look_up(*where: Any, **hints: Any) -> Any:
    """Ask for the addresses of a host, in a thread that nobody waits for once it is given up.

    For those of asyncio its loop and Python wait at their end, longer than any deadline, where a
    name server says nothing.
    """
    import asyncio
    import socket
    from concurrent.futures import Future
    from threading import Thread

    found: Future[Any] = Future()
    found.set_running_or_notify_cancel()

    def ask() -> None:
        try:
            found.set_result(socket.getaddrinfo(*where, **hints))
        except Exception as error:
            found.set_exception(error)

    Thread(target=ask, daemon=True).start()
    return await asyncio.wrap_future(found)


@contextmanager
def at_ctrl_c(handle: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Have Ctrl-C call a function for the length of the block, unless it is ignored."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def interruptible() -> AbstractContextManager[None]:
    """Let Ctrl-C end what blocks, such as a read of stdin: asyncio's own handler would wait."""
    return at_ctrl_c(signal.default_int_handler)


@contextmanager
def ended_by_signals() -> Iterator[list[int]]:
    """End the block, as if it were done, at SIGTERM or SIGHUP; yields the signals that came.

    So what the block has changed about the terminal is put back, as at any end of it.
    """
    import asyncio

    from ..signals import handling, unless_ignored

    task = asyncio.current_task()
    assert task is not None
    received: list[int] = []

    def end(number: int) -> None:
        received.append(number)
        task.cancel()

    with handling([signal.SIGTERM, *unless_ignored(signal.SIGHUP)], end):
        try:
            yield received
        except asyncio.CancelledError:
            if not received:
                raise
            task.uncancel()


def with_database(
    work: Callable[[Database], Awaitable[T]],
    *,
    setup: bool = False,
    timeout: timedelta | None = None,
) -> T:
    """Run asynchronous work on the configured database.

    Args:
        setup: migrate it first.
        timeout: the deadline of the work; None: it bounds its own waits.

    Raises:
        DeadlinePassedError: the deadline passed.
    """

    async def open_and_work() -> T:
        import logging

        from ..store.opening import open_database
        from .logs import log_to_stderr

        log_to_stderr(logging.WARNING, "brief")

        async with open_database(settings(), setup=setup, say=tell) as database:
            return await work(database)

    return run_async(lambda: _within(open_and_work(), timeout))


async def while_read(work: Awaitable[T]) -> T:
    """Wait for work that prints now and then, but no longer than somebody reads stdout.

    Raises:
        ClosedPipeError: the reader has left.
    """
    import asyncio

    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(work)
    left = False

    def leave() -> None:
        nonlocal left
        left = True
        task.cancel()

    watched = _is_pipe(sys.stdout.fileno())
    if watched:
        # A pipe's writing end is never readable; the kernel reports that its reader is gone.
        loop.add_reader(sys.stdout.fileno(), leave)
    try:
        return await task
    except asyncio.CancelledError:
        if left:
            raise ClosedPipeError from None
        raise
    finally:
        task.cancel()
        if watched:
            loop.remove_reader(sys.stdout.fileno())


def _is_pipe(descriptor: int) -> bool:
    return stat.S_ISFIFO(os.fstat(descriptor).st_mode)


async def _within(work: Awaitable[T], deadline: timedelta | None) -> T:
    import asyncio

    limit = None if deadline is None else deadline.total_seconds()
    try:
        async with asyncio.timeout(limit) as bound:
            return await work
    except TimeoutError:
        if not bound.expired():
            raise
        raise DeadlinePassedError(f"the time of {limit:g}s is over") from None


def parsed(
    parse: Callable[[str], T], text: str, what: str, refusal: type[AssistantError] = UsageError
) -> T:
    """Parse a text; where that is refused, the error names what was given, such as an option."""
    try:
        return parse(text)
    except ValueError as error:
        raise refusal(f"{what}: {error}") from None


def duration(text: str, option: str) -> timedelta:
    """Parse the duration given as an option.

    Raises:
        UsageError: it is not one.
    """
    from ..durations import parse_duration

    return parsed(parse_duration, text, option)


def optional_duration(text: str | None, option: str) -> timedelta | None:
    """Parse a duration as `duration` does; None where the option is not given."""
    return None if text is None else duration(text, option)


def complete_keys(ctx: typer.Context, incomplete: str) -> list[str]:
    """The keys that start with what was typed; none where the database is not up."""
    return _complete(ctx, lambda database: database.kv.list_keys(incomplete, 100))


def complete_agents(ctx: typer.Context, incomplete: str) -> list[str]:
    """The agents on the board that start with what was typed."""

    async def agents(database: Database) -> list[str]:
        from ..store.board import StatusBoard

        names = await StatusBoard(database).read()
        return [name for name in names if name.startswith(incomplete)]

    return _complete(ctx, agents)


def _complete(ctx: typer.Context, work: Callable[[Database], Awaitable[list[str]]]) -> list[str]:
    """Ask a database that is up, for a second at most; completion starts nothing, says nothing.

    What would need quotes is left out: shells evaluate or print some of what they are offered.
    """

    # The callback of the command line, which does so, is not called to complete it.
    configure(ctx.find_root().params.get("database_url"))

    async def ask() -> list[str]:
        from ..store.database import Database
        from ..store.opening import configured_dsn

        database = Database(configured_dsn(settings()))
        try:
            return [name for name in await work(database) if _PLAIN.fullmatch(name)]
        finally:
            await database.close()

    try:
        return run_async(lambda: _within(ask(), timedelta(seconds=1)))
    except Exception:
        return []


Agent = Annotated[str, typer.Argument(autocompletion=complete_agents, help="An agent.")]
Agents = Annotated[
    list[str] | None, typer.Argument(autocompletion=complete_agents, help="The agents.")
]
Key = Annotated[str, typer.Argument(autocompletion=complete_keys, help="A key.")]
TIMEOUT = typer.Option(metavar="DURATION", help="Exit 124 after this time.")
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Count = Annotated[int, typer.Option("-n", min=1, max=1_000_000, help="At most so many.")]
