"""The one bridge from commands to the asynchronous library, and what commands share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from ..durations import parse_duration
from ..errors import DeadlinePassedError, UsageError
from ..settings import Settings, load_settings
from .output import log_to_stderr, tell

if TYPE_CHECKING:
    from ..store.database import Database

T = TypeVar("T")

_settings: Settings | None = None


def configure(database_url: str | None) -> None:
    """Load the settings for this process, given the option of the command line."""
    global _settings  # noqa: PLW0603 (the settings of the whole process, loaded once)
    _settings = load_settings(database_url)


def settings() -> Settings:
    """The settings of this process."""
    return _settings or load_settings()


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Run asynchronous work to its end."""
    import asyncio

    return asyncio.run(work)


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

        log_to_stderr(logging.WARNING, "assistant: %(message)s")

        async with open_database(settings(), setup=setup, say=tell) as database:
            return await work(database)

    return run_async(_within(open_and_work(), timeout))


async def _within(work: Awaitable[T], deadline: timedelta | None) -> T:
    import asyncio

    limit = None if deadline is None else deadline.total_seconds()
    try:
        async with asyncio.timeout(limit) as bound:
            return await work
    except TimeoutError:
        if not bound.expired():
            raise
        raise DeadlinePassedError(f"nothing within {limit:g}s") from None


def duration(text: str) -> timedelta:
    """Parse a duration option.

    Raises:
        UsageError: it is not one.
    """
    try:
        return parse_duration(text)
    except ValueError as error:
        raise UsageError(str(error)) from None


def complete_keys(incomplete: str) -> list[str]:
    """The keys that start with what was typed; none where the database is not up."""
    return _complete(lambda database: database.kv.list_keys(incomplete, 100))


def complete_agents(incomplete: str) -> list[str]:
    """The agents on the board that start with what was typed."""

    async def agents(database: Database) -> list[str]:
        from ..store.board import StatusBoard

        names = await StatusBoard(database).read()
        return [name for name in names if name.startswith(incomplete)]

    return _complete(agents)


def _complete(work: Callable[[Database], Awaitable[list[str]]]) -> list[str]:
    """Ask a database that is up, for a second at most; completion starts nothing, says nothing."""

    async def ask() -> list[str]:
        from ..store.database import Database
        from ..store.opening import configured_dsn

        database = Database(configured_dsn(settings()))
        try:
            return await work(database)
        finally:
            await database.close()

    try:
        return run_async(_within(ask(), timedelta(seconds=1)))
    except Exception:
        return []


Agent = Annotated[str, typer.Argument(autocompletion=complete_agents, help="An agent.")]
Agents = Annotated[
    list[str] | None, typer.Argument(autocompletion=complete_agents, help="The agents.")
]
Key = Annotated[str, typer.Argument(autocompletion=complete_keys, help="A key.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
