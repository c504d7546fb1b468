"""Writes that arrive while others are committed share the next commit, in order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

R = TypeVar("R")
_MAX_BATCH = 500
_LEAVE_SECONDS = 4.5
"""How long a commit that hangs may hold up whoever gives up a write of it: longer than it takes to
cancel it on the server."""


@dataclass
class Write(Generic[R]):
    """Something to be committed; `written` tells what came of it."""

    written: asyncio.Future[R] = field(repr=False)

    def succeed(self, result: R) -> None:
        """It is committed. Whoever waited may have left."""
        if not self.written.done():
            self.written.set_result(result)

    def fail(self, error: BaseException) -> None:
        """It is not known to be committed."""
        if not self.written.done():
            self.written.set_exception(error)


W = TypeVar("W", bound=Write)  # type: ignore[type-arg]


class Batches(Generic[W]):
    """Hands on writes in batches, the next once the one before is committed.

    `commit` reports to each write of its batch what came of it; an error that it raises is reported
    to all of them. It leaves out writes that were given up meanwhile.
    """

    def __init__(self, commit: Callable[[list[W]], Awaitable[None]]) -> None:
        self._commit = commit
        self._pending: list[W] = []
        self._batch: list[W] = []
        self._committing: asyncio.Task[None] | None = None

    async def write(self, write: W) -> None:
        """Have a write committed with those that come at the same time; raises its error.

        A write that is cancelled must not be carried out after newer ones. Before its batch is
        begun, it is left out. Once its commit is under way, this waits for the end of that, for
        some seconds at most; where nobody else waits for the same commit, that is cancelled.
        """
        self._pending.append(write)
        if self._committing is None:
            self._begin()
        try:
            await write.written
        except asyncio.CancelledError:
            if self._committing and any(other is write for other in self._batch):
                await self._leave(self._committing)
            raise

    async def _leave(self, task: asyncio.Task[None]) -> None:
        if not still_wanted(self._batch) and not task.cancelling():
            task.cancel()
        await asyncio.wait([task], timeout=_LEAVE_SECONDS)

    def _begin(self) -> None:
        self._committing = asyncio.create_task(self._commit_next())
        self._committing.add_done_callback(self._ended)

    async def _commit_next(self) -> None:
        first, self._pending = self._pending[:_MAX_BATCH], self._pending[_MAX_BATCH:]
        self._batch = still_wanted(first)
        if self._batch:
            await self._commit(self._batch)

    # A callback, since a task that is cancelled before its first step runs nothing of its own.
    def _ended(self, task: asyncio.Task[None]) -> None:
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is not None:
            fail_all(self._batch, error)
        self._batch = []
        self._committing = None
        self._pending = still_wanted(self._pending)
        if self._pending:
            self._begin()


def still_wanted(writes: Iterable[W]) -> list[W]:
    """Those of the writes whose caller has not given up, nor been told what came of them."""
    return [write for write in writes if not write.written.done()]


def fail_all(writes: Iterable[W], error: BaseException) -> None:
    """Tell all of them the same error."""
    for write in writes:
        write.fail(error)
