"""Writes that arrive while others are committed share the next commit, in order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

R = TypeVar("R")
_MAX_BATCH = 500


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

    `commit` tells each write of its batch what came of it; what it raises, all of them are told.
    """

    def __init__(self, commit: Callable[[list[W]], Awaitable[None]]) -> None:
        self._commit = commit
        self._pending: list[W] = []
        self._batch: list[W] = []
        self._batch_ended = asyncio.Event()
        self._flusher: asyncio.Task[None] | None = None

    async def write(self, write: W) -> None:
        """Have a write committed with those that come at the same time; raises what it was told.

        What is given up before it is begun is not begun, and a commit that nobody waits for any
        more is broken off: neither must come after what is newer.
        """
        self._pending.append(write)
        if self._flusher is None:
            self._flusher = asyncio.create_task(self._flush())
        try:
            await write.written
        except asyncio.CancelledError:
            if self._flusher is not None and self._batch and _nobody_waits(self._batch):
                if not self._flusher.cancelling():
                    self._flusher.cancel()
                await self._batch_ended.wait()
            raise

    async def _flush(self) -> None:
        try:
            while self._pending:
                batch, self._pending = self._pending[:_MAX_BATCH], self._pending[_MAX_BATCH:]
                self._batch = [write for write in batch if not write.written.done()]
                if self._batch:
                    await self._commit_batch(self._batch)
        finally:
            self._batch = []
            self._flusher = None

    async def _commit_batch(self, batch: list[W]) -> None:
        self._batch_ended.clear()
        try:
            await self._commit(batch)
        except asyncio.CancelledError as error:
            if not _nobody_waits(batch):
                fail_all(batch, error)
                raise
            if self._flusher is not None:
                self._flusher.uncancel()
        except BaseException as error:
            fail_all(batch, error)
            if not isinstance(error, Exception):
                raise
        finally:
            self._batch_ended.set()


def _nobody_waits(batch: Iterable[Write[Any]]) -> bool:
    return all(write.written.done() for write in batch)


def fail_all(writes: Iterable[W], error: BaseException) -> None:
    """Tell all of them the same error."""
    for write in writes:
        write.fail(error)
