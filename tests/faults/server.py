"""The server under fire."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row

from assistant_cli.embedded_postgres import EmbeddedPostgres
from assistant_cli.server_process import find_postmaster
from assistant_cli.store.database import Database
from assistant_cli.store.migrations import migrate
from assistant_cli.store.schedules import add_schedule
from assistant_cli.timing import Timing

from .final import SCHEDULED
from .proxy import Proxy


class Server:
    """An embedded server of the campaign's own, set up, with a network before it."""

    def __init__(self, home: Path) -> None:
        self._embedded = EmbeddedPostgres(home)
        self.proxy = Proxy(self._embedded.folder / "socket" / ".s.PGSQL.5432")
        self.near = self._embedded.dsn()

    @property
    def far(self) -> str:
        """How to connect over the network that can be made bad."""
        port = str(self.proxy.port)
        return make_conninfo(self.near, host="127.0.0.1", port=port, sslmode="disable")

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        await self._embedded.start(lambda _: None)
        try:
            database = Database(self.near)
            await migrate(database)
            due_at = datetime.now(UTC) + timedelta(seconds=1)
            every_second = Timing("every", "1s", None, due_at)
            await add_schedule(database, SCHEDULED, every_second, action="say")
            await database.close()
            async with self.proxy.serve():
                yield
        finally:
            await self._embedded.stop()

    async def restart(self, how: signal.Signals) -> None:
        postmaster = find_postmaster(self._embedded.data_folder)
        assert postmaster is not None
        postmaster.send_signal(how)
        with suppress(psutil.NoSuchProcess):
            while postmaster.status() != psutil.STATUS_ZOMBIE:  # noqa: ASYNC110 (not ours)
                await asyncio.sleep(0.02)
        await self._embedded.start(lambda _: None)

    def query(self, text: str, *parameters: Any) -> list[dict[str, Any]]:
        with psycopg.connect(self.near, autocommit=True, row_factory=dict_row) as connection:
            cursor = connection.execute(text.encode(), parameters)
            return cursor.fetchall() if cursor.description else []
