"""The faults of a campaign, brought about."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import time
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any

import psycopg

from ..small_disk import SmallDisk
from .actor import Actor
from .client import LEASE
from .plan import (
    Deafen,
    Fault,
    Isolate,
    Kill,
    Leave,
    Network,
    Plan,
    Restart,
    Stop,
    Strain,
    Terminate,
)
from .proxy import Proxy
from .server import Server
from .strain import END_SHARE, strain

_SLACK_SECONDS = 4.0
"""What a take-over may take beyond the lease, on a busy machine."""

_HOLDER = "SELECT token, pid FROM assistant.leases WHERE agent = 'conversation'"


class Injector:
    """Brings faults about.

    Attributes:
        counts: how many of each kind.
        takeovers: the seconds from the isolation of a holder to the next holder.
        violations: what went wrong meanwhile.
    """

    def __init__(
        self,
        plan: Plan,
        server: Server,
        disk: SmallDisk | None,
        actors: Sequence[Actor],
        networks: dict[Actor, Proxy],
    ) -> None:
        self.counts: dict[str, int] = {}
        self.takeovers: list[float] = []
        self.violations: list[str] = []
        self._server = server
        self._disk = disk
        self._actors = actors
        self._networks = networks
        self._patience = plan.patience
        self._choices = random.Random(f"{plan.seed}/isolations")
        self._tasks: set[asyncio.Task[None]] = set()

    async def inject(self, fault: Fault) -> None:
        """Bring one about; what lasts goes on after the return."""
        match fault:
            case Kill(actor):
                self.revive(self._actors[actor])
                self._actors[actor].kill()
            case Leave(actor):
                self.revive(self._actors[actor])
                self._actors[actor].leave()
            case Restart(how):
                await self._server.restart(how)
            case Terminate(share):
                await self._server.query(END_SHARE, share)
            case Network("reset", _):
                for network in self._server.networks:
                    network.reset()
            case Isolate(holders, others, seconds):
                await self._isolate(holders, others, seconds)
            case _:
                self._meanwhile(self._endure(fault))
        self.count(type(fault).__name__.lower())

    def count(self, name: str) -> None:
        """Count what was brought about."""
        self.counts[name] = self.counts.get(name, 0) + 1

    def revive(self, actor: Actor) -> None:
        """Start somebody again who has ended."""
        complaint = actor.revive()
        if complaint is not None:
            self.violations.append(complaint)

    async def finish(self) -> None:
        """Wait for what lasts."""
        await asyncio.gather(*self._tasks)

    def end(self) -> None:
        """Break off what lasts."""
        for task in self._tasks:
            task.cancel()

    def _meanwhile(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.add(asyncio.create_task(work))

    def _endure(self, fault: Stop | Network | Deafen | Strain) -> Coroutine[Any, Any, None]:
        match fault:
            case Stop(actor, seconds):
                return self._stop(self._actors[actor].process, seconds)
            case Network(kind, seconds):
                return self._spoil(self._server.networks, kind, seconds)
            case Deafen(actor, seconds):
                return self._deafen(self._actors[actor], seconds)
            case _:
                return strain(self._server, self._disk, fault)

    async def _stop(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(seconds)
        process.send_signal(signal.SIGCONT)

    async def _spoil(self, networks: Sequence[Proxy], kind: Any, seconds: float) -> None:
        for network in networks:
            network.spoil(kind)
        await asyncio.sleep(seconds)
        for network in networks:
            network.mend()

    async def _deafen(self, shell: Actor, seconds: float) -> None:
        with suppress(psycopg.OperationalError):
            async with await self._server.connect() as listener:
                await listener.execute("LISTEN assistant_kv")
                await listener.execute("BEGIN")
                await listener.execute("SELECT FROM kv LIMIT 1")
                shell.ear.close()
                await asyncio.sleep(seconds)
        shell.ear.open()

    async def _isolate(self, count: int, others: float, seconds: float) -> None:
        """Freeze the network of one holder after the other, then thaw them all together."""
        isolated: list[tuple[Actor, int]] = []
        # Whoever waits may be frozen too, but somebody must be left to take over.
        frozen = [a for a in self._networks if self._choices.random() < others]
        for _ in range(count):
            token, holder = await self._holder()
            isolated.append((holder, len(holder.ended_with)))
            for actor in [holder, *frozen]:
                self._networks[actor].spoil("freeze")
            frozen = []
            await self._await_successor(token, holder.name)
        await asyncio.sleep(seconds)
        for network in self._networks.values():
            network.mend()
        for actor, lives in isolated:
            await self._await_refusal(actor, lives)

    async def _holder(self) -> tuple[int, Actor]:
        """The token, and who holds it."""
        while True:
            for row in await self._server.query(_HOLDER):
                for actor in self._networks:
                    if actor.process.pid == row["pid"]:
                        return row["token"], actor
            await asyncio.sleep(0.05)

    async def _await_successor(self, token: int, name: str) -> None:
        began = time.monotonic()
        limit = LEASE.total_seconds() + _SLACK_SECONDS
        while (await self._holder())[0] <= token:
            await asyncio.sleep(0.05)
            if time.monotonic() > began + limit:
                self.violations.append(f"nobody took over from {name} within {limit:.0f}s")
                return
        self.takeovers.append(time.monotonic() - began)

    async def _await_refusal(self, actor: Actor, lives: int) -> None:
        """One that was taken over must leave, with the exit code that says so."""
        deadline = time.monotonic() + self._patience
        while len(actor.ended_with) == lives:
            if time.monotonic() > deadline:
                self.violations.append(f"{actor.name} was taken over and did not leave")
                return
            await asyncio.sleep(0.05)
        if actor.ended_with[lives] != 5:
            code = actor.ended_with[lives]
            self.violations.append(f"a holder that was taken over ended with {code}, not with 5")
