"""`assistant send` and `reply`: say something to the assistant, and what it answered."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from ..errors import (
    AssistantError,
    DatabaseUnreachableError,
    DeadlinePassedError,
    PendingError,
    UsageError,
)
from ..messages import MAIN_CONVERSATION
from . import output
from .commands import Command
from .session import TIMEOUT, duration, with_database

if TYPE_CHECKING:
    from ..store.database import Database
    from ..store.inbox import Progress

_LOOK_SECONDS = 5.0
_AGAIN = "--id makes it safe to send it again"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(cls=Command)(send)
    app.command(cls=Command)(reply)


def send(
    text: Annotated[
        str | None, typer.Argument(metavar="TEXT|-", help="The message; - or nothing: from stdin.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", "-w", help="Print the reply.")] = False,
    timeout: Annotated[str, TIMEOUT] = "10m",
    external_id: Annotated[
        str | None,
        typer.Option("--id", metavar="KEY", help="Your name for it: sent again, it is kept once."),
    ] = None,
    conversation: Annotated[
        str, typer.Option("--conversation", "-c", help="The conversation.")
    ] = MAIN_CONVERSATION,
) -> None:
    """Send a message: exit 0 once it is committed, and print its id; with --wait, the reply.

    \b
    assistant send --wait 'what is on today?'
    git log -1 | assistant send - --conversation work
    """
    limit = duration(timeout, "--timeout")
    content = read_message(text)

    async def put(database: Database) -> UUID:
        from ..store.inbox import put_message

        return await put_message(
            database, content, conversation=conversation, external_id=external_id
        )

    if not wait:
        output.print_data(_send(put, limit, timeout))
        return
    shown = output.GrowingText()
    shown.finish(_send(put, limit, timeout, shown.show))


def reply(
    message: Annotated[str, typer.Argument(metavar="ID", help="What `send` printed.")],
    wait: Annotated[bool, typer.Option("--wait", "-w", help="Wait until there is one.")] = False,
    timeout: Annotated[str, TIMEOUT] = "10m",
) -> None:
    """Print the reply to a message; exit 8 while there is none yet, 6 if there will be none.

    \b
    id=$(assistant send 'what is on today?')
    assistant reply "$id" || echo 'not yet'
    """
    limit = duration(timeout, "--timeout")
    identity = _parse_id(message)
    shown = output.GrowingText()

    async def read(database: Database) -> str:
        from ..patience import patiently
        from ..store.inbox import read_reply

        if not wait:
            return await read_reply(database, identity)
        try:
            # Who would answer matters only where there is no reply yet.
            return await patiently(lambda: read_reply(database, identity))
        except PendingError:
            return await wait_for(database, identity, shown.show)

    try:
        text = with_database(read, timeout=limit)
    except DeadlinePassedError:
        raise _no_reply_within(timeout, identity) from None
    shown.finish(text)


def _parse_id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise UsageError(f"{text!r} is no id of a message, as `assistant send` prints it") from None


def read_message(text: str | None) -> str:
    """TEXT as it is given; all of stdin where that is - or missing.

    Raises:
        UsageError: it is missing, and stdin is a terminal.
    """
    from .kv import read_stdin

    if text is not None and text != "-":
        return text
    if text is None and (sys.stdin is None or sys.stdin.isatty()):
        raise UsageError("TEXT is missing; give it, or - for stdin")
    return read_stdin().removesuffix("\n")


def _send(
    put: Callable[[Database], Awaitable[UUID]],
    limit: timedelta,
    timeout: str,
    watch: Callable[[str], None] | None = None,
) -> str:
    """Send a message; returns its id, or its reply where somebody watches it come."""
    message: list[UUID] = []

    async def work(database: Database) -> str:
        try:
            message.append(await put(database))
        except DatabaseUnreachableError as error:
            # The database was reached before: perhaps only its answer was lost.
            raise DatabaseUnreachableError(f"{error}; {_AGAIN}") from None
        return str(message[0]) if watch is None else await wait_for(database, message[0], watch)

    try:
        return with_database(work, timeout=limit)
    except DeadlinePassedError:
        if message:
            raise _no_reply_within(timeout, message[0]) from None
        raise DeadlinePassedError(
            f"not sent within {timeout}: the message may be kept or not; {_AGAIN}"
        ) from None


async def wait_for(database: Database, message: UUID, watch: Callable[[str], None]) -> str:
    """The reply to a message, once it is there; `watch` is told what has come of it so far."""
    from ..patience import patiently
    from ..store.inbox import wait_for_reply

    # The message is kept: from here on, a database that goes away is waited for.
    async with _telling_who_is_gone(database):
        return await patiently(lambda: wait_for_reply(database, message, watch))


def _no_reply_within(timeout: str, message: UUID) -> DeadlinePassedError:
    return DeadlinePassedError(
        f"no reply within {timeout}; message {message} is kept{_reason(message)}"
    )


@asynccontextmanager
async def _telling_who_is_gone(database: Database) -> AsyncIterator[None]:
    """Say where no agent is there to answer, at once and whenever it goes meanwhile."""
    import asyncio

    there = await _tell_if_gone(database, was_there=True)

    async def look_again(there: bool) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            there = await _tell_if_gone(database, was_there=there)

    looking = asyncio.create_task(look_again(there))
    try:
        yield
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)


async def _tell_if_gone(database: Database, *, was_there: bool) -> bool:
    """Whether the agent that answers is there; said where it no longer is."""
    from ..patience import patiently
    from ..store.status import get_snapshot

    there = (await patiently(lambda: get_snapshot(database))).answering
    if was_there and not there:
        output.tell("no conversation agent is running; the message is kept until one does")
    return there


def _reason(message: UUID) -> str:
    """Why a message is not answered yet, as far as that is known."""

    async def read(database: Database) -> Progress:
        from ..store.inbox import read_progress

        async with database.connection() as connection:
            return await read_progress(connection, message)

    try:
        return with_database(read, timeout=timedelta(seconds=2)).last_failure
    except AssistantError:
        return ""
