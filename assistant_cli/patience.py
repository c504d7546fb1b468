"""Patience with a database that is away."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from .errors import DatabaseUnreachableError

log = logging.getLogger(__name__)

T = TypeVar("T")

_BACKOFF_SECONDS = (0.0, 0.1, 0.3, 1.0, 2.0, 5.0)


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
        await asyncio.sleep(backoff(failures))


def backoff(failures: int) -> float:
    """The seconds to pause after so many failures in a row."""
    return _BACKOFF_SECONDS[min(failures, len(_BACKOFF_SECONDS) - 1)]
