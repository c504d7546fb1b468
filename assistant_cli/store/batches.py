"""Writes that arrive while others are committed share the next commit, in order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Generic, TypeVar

R = TypeVar("R")
_MAX_BATCH = 500
_LEAVE_SECONDS = 2.5
"""How long one that hangs may hold up whoever gives it up: longer than it takes to break it off."""


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


@dataclass
class _Batch(Generic[W]):
    """Writes that are committed together."""

    writes: list[W]
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class Batches(Generic[W]):
    """Hands on writes in batches, the next once the one before is committed.

    `commit` tells each write of its batch what came of it; what it raises, all of them are told.
    It leaves out those that were given up meanwhile.
    """

    def __init__(self, commit: Callable[[list[W]], Awaitable[None]]) -> None:
        self._commit = commit
        self._pending: list[W] = []
        self._batch: _Batch[W] = _Batch([])
        self._flusher: asyncio.Task[None] | None = None

    async def write(self, write: W) -> None:
        """Have a write committed with those that come at the same time; raises what it was told.

        It must not come after what is newer. One that is given up before it is begun is not
        begun. One under way is waited for, for some seconds at most, and is broken off where
        nobody else waits for the same commit.
        """
        self._pending.append(write)
        if self._flusher is None or self._flusher.done():
            self._flusher = asyncio.create_task(self._flush())
        try:
            await write.written
        except asyncio.CancelledError:
            batch = self._batch
            if any(other is write for other in batch.writes):
                await self._leave(batch, self._flusher)
            raise

    async def _leave(self, batch: _Batch[W], flusher: asyncio.Task[None]) -> None:
        if not still_wanted(batch.writes) and not flusher.cancelling():
            flusher.cancel()
        with suppress(TimeoutError):
            async with asyncio.timeout(_LEAVE_SECONDS):
                await batch.ended.wait()

    async def _flush(self) -> None:
        try:
            while self._pending:
                first, self._pending = self._pending[:_MAX_BATCH], self._pending[_MAX_BATCH:]
                self._batch = _Batch(still_wanted(first))
                if self._batch.writes:
                    await self._commit_batch(self._batch)
        finally:
            self._batch = _Batch([])
            self._flusher = None

    async def _commit_batch(self, batch: _Batch[W]) -> None:
        try:
            await self._commit(batch.writes)
        except asyncio.CancelledError as error:
            if still_wanted(batch.writes):
                fail_all(batch.writes, error)
                raise
        except BaseException as error:
            fail_all(batch.writes, error)
            if not isinstance(error, Exception):
                raise
        finally:
            batch.ended.set()
            if self._flusher is not None and self._flusher.cancelling():
                self._flusher.uncancel()


def still_wanted(writes: Iterable[W]) -> list[W]:
    """Those of the writes whose caller has not given up, nor been told what came of them."""
    return [write for write in writes if not write.written.done()]


def fail_all(writes: Iterable[W], error: BaseException) -> None:
    """Tell all of them the same error."""
    for write in writes:
        write.fail(error)
