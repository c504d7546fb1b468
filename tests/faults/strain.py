"""Faults of the server that last for a while."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from typing import assert_never

import psycopg

from ..small_disk import SmallDisk
from .plan import Crowd, Deadlock, Fill, Setting, Strain
from .server import Server

END_SHARE = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE backend_type = 'client backend' AND application_name <> '' AND random() < %s
"""
"""Ends a share of the connections; the campaign's own have no name."""

_FILL_SEGMENT = "SELECT pg_switch_wal(), pg_logical_emit_message(false, '', 'x')"
_SEGMENTS = 64


async def strain(server: Server, disk: SmallDisk | None, fault: Strain) -> None:
    """Bring one about, and its end; where another fault ends our connection it ends sooner."""
    match fault:
        case Setting(setting, value, seconds):
            await _set(server, setting, value, seconds)
        case Deadlock(tables, seconds):
            with suppress(psycopg.OperationalError):
                await _lock(server, tables, seconds)
        case Crowd(seconds):
            with suppress(psycopg.OperationalError):
                await _crowd(server, seconds)
        case Fill(panic, seconds):
            assert disk is not None
            await _fill(server, disk, panic, seconds)
        case _:
            assert_never(fault)


async def _set(server: Server, name: str, value: str, seconds: float) -> None:
    await server.query(f"ALTER SYSTEM SET {name} = '{value}'")
    await server.query("SELECT pg_reload_conf()")
    await asyncio.sleep(seconds)
    await server.query(f"ALTER SYSTEM RESET {name}")
    await server.query("SELECT pg_reload_conf()")


async def _lock(server: Server, tables: Sequence[str], seconds: float) -> None:
    """Lock tables one after the other; whoever else is part of a deadlock loses it."""
    async with await server.connect() as connection, connection.transaction():
        await connection.execute("SET LOCAL deadlock_timeout = '1min'")
        for table in tables:
            await connection.execute(f"LOCK TABLE {table} IN SHARE MODE".encode())
            await asyncio.sleep(seconds)


async def _crowd(server: Server, seconds: float) -> None:
    """Take connections as long as there are any, also those that are given back meanwhile."""
    until = time.monotonic() + seconds
    refused = False
    async with await server.connect() as admin, AsyncExitStack() as crowd:
        while not refused or time.monotonic() < until:
            with suppress(psycopg.OperationalError):
                taken = await psycopg.AsyncConnection.connect(server.admin)
                await crowd.enter_async_context(taken)
                continue
            if not refused:
                refused = True
                with suppress(psycopg.OperationalError):
                    await admin.execute(END_SHARE, (0.5,))
            await asyncio.sleep(0.01)


async def _fill(server: Server, disk: SmallDisk, panic: bool, seconds: float) -> None:
    try:
        disk.fill()
        if panic:
            with suppress(psycopg.OperationalError):
                async with await server.connect() as connection:
                    for _ in range(_SEGMENTS):
                        await connection.execute(_FILL_SEGMENT)
        await asyncio.sleep(seconds)
    finally:
        disk.free()
    await server.bring_up()
