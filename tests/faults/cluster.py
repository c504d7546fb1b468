"""A primary and a standby that it waits for, of which the first dies again and again."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import psycopg

from ..password_server import set_up
from ..postgres_server import OWNER, PASSWORD, PostgresServer
from .plan import SETTINGS
from .proxy import Proxy
from .server import Server, persist

_IN_SYNC = "SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'"


class Cluster(Server):
    """Two servers; whoever connects names both and takes the one that takes writes."""

    def __init__(self, home: Path) -> None:
        home.mkdir(mode=0o711, exist_ok=True)
        self._home = home
        self._copies = 0
        self._primary = PostgresServer(home, "first")
        self._standby = PostgresServer(home, "second")
        self._ports = [self._primary.port, self._standby.port]
        self.networks = [Proxy(port) for port in self._ports]
        self.near = self._url("runtime", self._ports)
        self.admin = self._url(OWNER, self._ports)

    def _url(self, user: str, ports: list[int]) -> str:
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
        return f"postgresql://{user}:{PASSWORD}@{hosts}/app?target_session_attrs=read-write"

    @property
    def far(self) -> str:
        return self._url("runtime", [network.port for network in self.networks])

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        try:
            await asyncio.to_thread(self._create)
            await self.prepare()
            await self.query("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
            await self.query("SELECT pg_reload_conf()")
            await self._add_standby(self._standby)
            async with AsyncExitStack() as networks:
                for network in self.networks:
                    await networks.enter_async_context(network.serve())
                yield
        finally:
            self._primary.stop()
            self._standby.stop()

    def _create(self) -> None:
        self._primary.create()
        self._primary.start()
        set_up(self._primary)

    async def restart(self, how: signal.Signals) -> None:
        """Kill the primary, promote the standby, and make a new standby of what is left."""
        del how
        dead, self._primary = self._primary, self._standby
        await asyncio.to_thread(dead.kill)
        await persist(self._promote, psycopg.OperationalError)
        # A copy may have been made while one of them was set.
        for name in {name for name, _ in SETTINGS}:
            await self.query(f"ALTER SYSTEM RESET {name}")
        await self.query("SELECT pg_reload_conf()")
        self._copies += 1
        self._standby = PostgresServer(self._home, f"copy{self._copies}", port=dead.port)
        await self._add_standby(self._standby)

    async def _promote(self) -> None:
        connecting = psycopg.AsyncConnection.connect(self._primary.admin_dsn, autocommit=True)
        async with await connecting as connection:
            await connection.execute("SELECT pg_promote() WHERE pg_is_in_recovery()")

    async def _add_standby(self, standby: PostgresServer) -> None:
        await asyncio.to_thread(standby.copy, self._primary, "standby")
        await asyncio.to_thread(standby.start)
        while not await self.query(_IN_SYNC):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
