"""The bad network of the campaign does what it says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest

from assistant_cli.embedded_postgres import EmbeddedPostgres

from .proxy import Fault, Proxy


@pytest.fixture
async def proxy(server_home: Path) -> AsyncIterator[Proxy]:
    """A network before the tests' server."""
    proxy = Proxy(EmbeddedPostgres(server_home).folder / "socket" / ".s.PGSQL.5432")
    async with proxy.serve():
        yield proxy


async def connect(proxy: Proxy, dsn: str) -> psycopg.AsyncConnection[tuple[object, ...]]:
    return await psycopg.AsyncConnection.connect(
        dsn, host="127.0.0.1", port=str(proxy.port), sslmode="disable", autocommit=True
    )


async def answer(connection: psycopg.AsyncConnection[tuple[object, ...]]) -> object:
    return await (await connection.execute("SELECT 42")).fetchone()


@pytest.mark.parametrize("fault", ["delay", "freeze"])
async def test_what_is_late_comes_in_the_end(proxy: Proxy, admin_dsn: str, fault: Fault) -> None:
    async with await connect(proxy, admin_dsn) as connection:
        proxy.spoil(fault)
        question = asyncio.create_task(answer(connection))
        _, waiting = await asyncio.wait({question}, timeout=0.05)
        assert waiting
        proxy.mend()
        assert await question == (42,)


@pytest.mark.parametrize("fault", ["lose requests", "lose answers"])
async def test_what_has_lost_something_is_reset_when_mended(
    proxy: Proxy, admin_dsn: str, fault: Fault
) -> None:
    connection = await connect(proxy, admin_dsn)
    proxy.spoil(fault)
    question = asyncio.create_task(answer(connection))
    _, waiting = await asyncio.wait({question}, timeout=0.1)
    assert waiting
    proxy.mend()
    with pytest.raises(psycopg.OperationalError):
        await question
    async with await connect(proxy, admin_dsn) as again:
        assert await answer(again) == (42,)


async def test_a_reset_breaks_what_is_open(proxy: Proxy, admin_dsn: str) -> None:
    connection = await connect(proxy, admin_dsn)
    proxy.reset()
    with pytest.raises(psycopg.OperationalError):
        await answer(connection)
