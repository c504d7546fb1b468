"""A clock whose time only the test moves."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import UTC, datetime, timedelta


class DrivenClock:
    """Wakes those who wait when the time they wait for is reached, or their event is set."""

    def __init__(self, start: datetime | None = None) -> None:
        self._now = start or datetime.now(UTC)
        self._sleepers: dict[asyncio.Future[None], datetime | None] = {}

    def now(self) -> datetime:
        return self._now

    def move(self, **by: float) -> None:
        """Move the time, by a timedelta given as keywords."""
        self._now += timedelta(**by)
        for sleeper, until in self._sleepers.items():
            if until is not None and until <= self._now and not sleeper.done():
                sleeper.set_result(None)

    async def wait(self, event: asyncio.Event, until: datetime | None) -> None:
        if until is not None and until <= self._now:
            return
        sleeper = asyncio.get_running_loop().create_future()
        self._sleepers[sleeper] = until
        signalled = asyncio.create_task(event.wait())
        try:
            await asyncio.wait({sleeper, signalled}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            del self._sleepers[sleeper]
            signalled.cancel()
            with suppress(asyncio.CancelledError):
                await signalled

    def next_waking(self) -> datetime | None:
        """The first time that somebody waits for."""
        return min((until for until in self._sleepers.values() if until), default=None)
