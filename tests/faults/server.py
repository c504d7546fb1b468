"""The server under fire."""

from __future__ import annotations

import asyncio
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import psutil
import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row

from assistant_cli.embedded_postgres import EmbeddedPostgres
from assistant_cli.errors import DatabaseUnreachableError
from assistant_cli.server_process import find_postmaster
from assistant_cli.store.database import Database
from assistant_cli.store.migrations import migrate
from assistant_cli.store.schedules import add_schedule
from assistant_cli.timing import Timing

from .final import SCHEDULED, WITNESS
from .proxy import Proxy

T = TypeVar("T")

_PATIENCE_SECONDS = 30.0
_UNLIMITED = (
    "-c statement_timeout=0 -c lock_timeout=0 -c default_transaction_read_only=off "
    "-c synchronous_commit=local"
)


class Server(ABC):
    """A server of the campaign's own, set up, with a network before it.

    Attributes:
        near: how clients connect directly.
        far: how they connect over the networks that can be made bad.
        admin: how the administrator connects.
        networks: those that can be made bad.
    """

    near: str
    admin: str
    networks: Sequence[Proxy]

    @property
    @abstractmethod
    def far(self) -> str: ...

    @abstractmethod
    def serve(self) -> AbstractAsyncContextManager[None]:
        """Be there, set up, while the block runs."""

    @abstractmethod
    async def restart(self, how: signal.Signals) -> None:
        """End it by a signal, and come back."""

    async def bring_up(self) -> None:
        """Start it where it is down, as soon as its disk and its connections allow."""
        raise NotImplementedError

    def new_network(self) -> Proxy:
        """Another network before this server, which is still to be served."""
        raise NotImplementedError

    def over(self, network: Proxy) -> str:
        """How to connect over a network."""
        return make_conninfo(self.near, host="127.0.0.1", port=str(network.port), sslmode="disable")

    async def connect(self) -> psycopg.AsyncConnection[dict[str, Any]]:
        """Connect as the administrator."""
        return await psycopg.AsyncConnection.connect(
            self.admin, autocommit=True, row_factory=dict_row, options=_UNLIMITED
        )

    async def query(self, text: str, *parameters: Any) -> list[dict[str, Any]]:
        """Ask as the administrator, again and again while some fault is in the way."""

        async def ask() -> list[dict[str, Any]]:
            async with await self.connect() as connection:
                cursor = await connection.execute(text.encode(), parameters or None)
                return await cursor.fetchall() if cursor.description else []

        return await persist(ask, psycopg.OperationalError)

    async def prepare(self) -> None:
        """Add what a campaign looks at, to a database that is migrated."""
        database = Database(self.admin)
        due_at = datetime.now(UTC) + timedelta(seconds=1)
        every_second = Timing("every", "1s", None, due_at)
        await add_schedule(database, SCHEDULED, every_second, action="say")
        await database.close()
        await self.query(WITNESS)


class EmbeddedServer(Server):
    """An embedded server in a home."""

    def __init__(self, home: Path) -> None:
        self._embedded = EmbeddedPostgres(home)
        self.networks = [self.new_network()]
        self.near = self.admin = self._embedded.dsn()

    @property
    def far(self) -> str:
        return self.over(self.networks[0])

    def new_network(self) -> Proxy:
        return Proxy(self._embedded.folder / "socket" / ".s.PGSQL.5432")

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        await self._embedded.start(lambda _: None)
        try:
            database = Database(self.admin)
            await migrate(database)
            await database.close()
            await self.prepare()
            async with self.networks[0].serve():
                yield
        finally:
            await self._embedded.stop()

    async def restart(self, how: signal.Signals) -> None:
        postmaster = find_postmaster(self._embedded.data_folder)
        if postmaster is not None:
            postmaster.send_signal(how)
            with suppress(psutil.NoSuchProcess):
                while postmaster.status() != psutil.STATUS_ZOMBIE:  # noqa: ASYNC110 (not ours)
                    await asyncio.sleep(0.02)
        await self.bring_up()

    async def bring_up(self) -> None:
        await persist(lambda: self._embedded.start(lambda _: None), DatabaseUnreachableError)


async def persist(work: Callable[[], Awaitable[T]], fault: type[Exception]) -> T:
    """Do something again and again until no fault is in the way; it must be safe to repeat."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return await work()
        except fault:
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(0.05)
