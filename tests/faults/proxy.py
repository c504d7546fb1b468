"""A network between clients and the server that can be made bad."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Literal

Fault = Literal["delay", "freeze", "lose requests", "lose answers"]

_BLOCK = 65_536
_DELAY_SECONDS = 0.2


class Proxy:
    """Passes a TCP port of this host on to the server's socket file, or to another port.

    A frozen network forwards nothing, while the kernel goes on to acknowledge what is sent. One
    that loses requests or answers swallows them, as a cut in one direction does; what has lost
    anything is reset when the network is mended.
    """

    def __init__(self, target: Path | int) -> None:
        self._target = target
        self._fault: Fault | None = None
        self._mended = asyncio.Event()
        self._mended.set()
        self._links: dict[asyncio.Task[None], list[asyncio.StreamWriter]] = {}
        self._torn: set[asyncio.Task[None]] = set()
        self.port = 0

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        """Listen on `port` while the block runs."""
        server = await asyncio.start_server(self._link, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            self.mend()
            self.reset()
            server.close()
            await asyncio.gather(*self._links, return_exceptions=True)

    def spoil(self, fault: Fault) -> None:
        """Make the network bad until `mend`."""
        self._fault = fault
        self._mended.clear()

    def mend(self) -> None:
        """Make the network good."""
        self._fault = None
        self._mended.set()
        self._reset(self._torn)

    def reset(self) -> None:
        """Reset all connections."""
        self._reset(set(self._links))

    def _reset(self, links: set[asyncio.Task[None]]) -> None:
        for link in links & self._links.keys():
            for writer in self._links[link]:
                # Closed like this, a connection is reset and not shut down.
                linger = struct.pack("ii", 1, 0)
                with suppress(OSError):
                    writer.get_extra_info("socket").setsockopt(
                        socket.SOL_SOCKET, socket.SO_LINGER, linger
                    )
                writer.transport.abort()
            link.cancel()
        links.clear()

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = asyncio.current_task()
        assert link is not None
        writers = self._links[link] = [writer]
        try:
            there = await self._connect()
            writers.append(there[1])
            async with asyncio.TaskGroup() as ways:
                ways.create_task(self._pass_on(reader, there[1], "lose requests", link))
                ways.create_task(self._pass_on(there[0], writer, "lose answers", link))
        except (OSError, ExceptionGroup, asyncio.CancelledError):
            pass
        finally:
            for each in writers:
                each.transport.abort()
            del self._links[link]

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self._target, int):
            return await asyncio.open_connection("127.0.0.1", self._target)
        return await asyncio.open_unix_connection(str(self._target))

    async def _pass_on(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        lost: Fault,
        link: asyncio.Task[None],
    ) -> None:
        while data := await reader.read(_BLOCK):
            if self._fault == "delay":
                await asyncio.sleep(_DELAY_SECONDS)
            elif self._fault == "freeze":
                await self._mended.wait()
            if self._fault == lost:
                self._torn.add(link)
            else:
                writer.write(data)
                await writer.drain()
        raise ConnectionResetError
