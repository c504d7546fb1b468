"""The clock that the agents wait by."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from assistant_cli.clock import SystemClock
from assistant_cli.timing import host_zone


async def test_a_wait_that_is_cancelled_as_its_event_comes_is_cancelled() -> None:
    event = asyncio.Event()
    waiting = asyncio.create_task(SystemClock().wait(event, None))
    for _ in range(3):
        await asyncio.sleep(0)
    event.set()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


def test_a_zone_that_the_host_changes_meanwhile_counts(
    in_zone: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    in_zone("Asia/Tokyo")
    assert host_zone(SystemClock().now()) == "Asia/Tokyo"
    monkeypatch.setenv("TZ", "America/Phoenix")
    now = SystemClock().now()
    assert host_zone(now) == "America/Phoenix"
    assert now.astimezone().tzname() == "MST"
