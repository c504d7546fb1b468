"""The time of day as the agents see it; a test drives one of its own."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import Protocol

_LONGEST_WAIT_SECONDS = 30.0


class Clock(Protocol):
    """Tells the time, and waits for one."""

    def now(self) -> datetime:
        """The time, in UTC."""

    async def wait(self, event: asyncio.Event, until: datetime | None) -> None:
        """Wait for an event, or for a time; may return early."""


class SystemClock:
    """The host's clock. It looks again at least every 30 s: clocks are set, laptops sleep."""

    def now(self) -> datetime:
        # Laptops travel, too: else the zone stays the one that the process began in.
        time.tzset()
        return datetime.now(UTC)

    async def wait(self, event: asyncio.Event, until: datetime | None) -> None:
        seconds = _LONGEST_WAIT_SECONDS
        if until is not None:
            seconds = min(seconds, max(0.0, (until - self.now()).total_seconds()))
        # Not wait_for, which on Python 3.11 forgets a cancellation that comes with the event.
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await event.wait()
