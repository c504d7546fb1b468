"""Writes that arrive while others are committed share the next commit, in order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

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
        self._flusher: asyncio.Task[None] | None = None

    def add(self, write: W) -> None:
        """Have a write committed with those that come at the same time."""
        self._pending.append(write)
        if self._flusher is None:
            self._flusher = asyncio.create_task(self._flush())

    async def _flush(self) -> None:
        try:
            while self._pending:
                batch, self._pending = self._pending[:_MAX_BATCH], self._pending[_MAX_BATCH:]
                try:
                    await self._commit(batch)
                except BaseException as error:
                    fail_all(batch, error)
                    if not isinstance(error, Exception):
                        raise
        finally:
            self._flusher = None


def fail_all(writes: Iterable[W], error: BaseException) -> None:
    """Tell all of them the same error."""
    for write in writes:
        write.fail(error)
