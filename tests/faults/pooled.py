"""A server behind PgBouncer in transaction mode."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict

from ..pooler import Pooler
from ..postgres_server import free_port
from .proxy import Proxy
from .server import EmbeddedServer


class PooledServer(EmbeddedServer):
    """The bad network lies before the pooler; a server that is killed takes it along."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        # The pooler runs under an account that the server does not know, and so talks to us.
        self._backstage = self.new_network()
        self._port = free_port()
        self.networks = [Proxy(self._port)]
        self.near = f"postgresql://any@127.0.0.1:{self._port}/assistant"

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        user = str(conninfo_to_dict(self.admin)["user"])
        async with super().serve(), self._backstage.serve():
            target = f"port={self._backstage.port} user={user} dbname=assistant"
            self._pooler = Pooler(self._port, "assistant", target)
            try:
                self._pooler.start()
                yield
            finally:
                self._pooler.remove()

    async def restart(self, how: signal.Signals) -> None:
        if how == signal.SIGKILL:
            self._pooler.kill()
        await super().restart(how)
        if how == signal.SIGKILL:
            self._pooler.start()
