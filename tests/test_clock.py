"""The clock that the agents wait by."""

from __future__ import annotations

import asyncio

import pytest

from assistant_cli.clock import SystemClock


async def test_a_wait_that_is_cancelled_as_its_event_comes_is_cancelled() -> None:
    event = asyncio.Event()
    waiting = asyncio.create_task(SystemClock().wait(event, None))
    for _ in range(3):
        await asyncio.sleep(0)
    event.set()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
