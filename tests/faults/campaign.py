"""The campaign: clients and agents at work on one server, faults between them, then the check.

All choices follow from the seed; the moments at which they meet the work do not.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from assistant_cli.store.answering import retry_turn
from assistant_cli.store.database import Database

from ..small_disk import SmallDisk, small_disk
from .actor import HOSTING, Actor
from .checker import check
from .cluster import Cluster
from .final import MARKER, Final, keep_final, read_store
from .history import read_history
from .injection import Injector
from .plan import Plan
from .pooled import PooledServer
from .proxy import Proxy
from .server import EmbeddedServer, Server

SERVERS: dict[str, Callable[[Path], Server]] = {
    "embedded": EmbeddedServer,
    "pooler": PooledServer,
    "failover": Cluster,
}
_WRITE_MARKER = "INSERT INTO kv (key, value) VALUES (%s, '0') ON CONFLICT DO NOTHING"


@dataclass
class Report:
    """What a campaign found; `counts` are faults that really were injected."""

    seed: int
    counts: dict[str, int] = field(default_factory=dict)
    operations: int = 0
    unknown: int = 0
    deliveries: int = 0
    messages: int = 0
    retried: int = 0
    takeovers: list[float] = field(default_factory=list)
    seconds: float = 0.0
    violations: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        faults = ", ".join(f"{name} {count}" for name, count in sorted(self.counts.items()))
        return (
            f"seed {self.seed}: {self.seconds:.0f}s; {faults}; {self.operations} calls "
            f"({self.unknown} with unknown outcome), {self.deliveries} deliveries, "
            f"{self.messages} messages ({self.retried} retried by hand); {self._taken_over()}"
            f"{len(self.violations)} violations"
        )

    def _taken_over(self) -> str:
        if not self.takeovers:
            return ""
        times = sorted(self.takeovers)
        median, longest = times[len(times) // 2], times[-1]
        return f"taken over after {median:.1f} s, at most {longest:.1f} s; "


async def run_campaign(plan: Plan, home: Path, folder: Path) -> Report:
    """Run a campaign; the histories stay in the folder.

    Args:
        home: for the server, which is made there; other users must be able to reach it.
    """
    began = time.monotonic()
    report = Report(plan.seed)
    async with AsyncExitStack() as stack:
        disk = stack.enter_context(small_disk(home, plan.disk)) if plan.disk else None
        server = SERVERS[plan.server](home)
        await stack.enter_async_context(server.serve())
        campaign = _Campaign(plan, server, disk, folder, report)
        try:
            await campaign.populate(stack)
            await campaign.rage()
            await campaign.settle()
        finally:
            campaign.end()
        final = await campaign.final()
    keep_final(final, folder)
    history = read_history(folder)
    report.operations = len(history.operations)
    report.unknown = sum(o.outcome == "unknown" for o in history.operations)
    report.deliveries = len(history.deliveries)
    report.messages = sum(row["role"] == "user" for row in final.messages)
    report.retried = len(final.retried)
    report.violations += check(history, final)
    report.seconds = time.monotonic() - began
    return report


class _Campaign:
    def __init__(
        self, plan: Plan, server: Server, disk: SmallDisk | None, folder: Path, report: Report
    ) -> None:
        self._plan = plan
        self._server = server
        self._folder = folder
        self._report = report
        self._choices = random.Random(f"{plan.seed}/pauses")
        self._watchers: list[str] = []
        self._retried: list[str] = []
        self._actors: list[Actor] = []
        self._networks: dict[Actor, Proxy] = {}
        self._injector = Injector(plan, server, disk, self._actors, self._networks)

    async def populate(self, networks: AsyncExitStack) -> None:
        """Start everybody; where hosts are to be isolated, each has a network of its own."""
        for number, role in enumerate(self._plan.roles):
            dsn = self._server.far if number % 2 else self._server.near
            network = None
            if role == "host" and self._plan.isolations:
                network = self._server.new_network()
                await networks.enter_async_context(network.serve())
                dsn = self._server.over(network)
            actor = Actor(role, number, self._plan, self._folder, dsn)
            self._actors.append(actor)
            if network is not None:
                self._networks[actor] = network

    async def rage(self) -> None:
        """Inject all faults; whoever dies is started again."""
        supervising = asyncio.create_task(self._supervise())
        try:
            await self._await_start()
            for fault in self._plan.faults():
                await self._injector.inject(fault)
                await asyncio.sleep(self._choices.uniform(0, 2 * self._plan.pace))
            await asyncio.gather(asyncio.sleep(self._plan.calm), self._injector.finish())
        finally:
            supervising.cancel()

    async def _await_start(self) -> None:
        """Wait until everybody has begun to work."""
        while not all(actor.has_begun() for actor in self._actors):  # noqa: ASYNC110
            await asyncio.sleep(0.05)

    async def _supervise(self) -> None:
        while True:
            for actor in self._actors:
                self._injector.revive(actor)
            await asyncio.sleep(0.05)

    async def settle(self) -> None:
        """Let everybody finish: clients, then the agents, then the watchers."""
        watching = [actor for actor in self._actors if actor.role == "watch"]
        answering = [actor for actor in self._actors if actor.role in {*HOSTING, "answer"}]
        shells = [actor for actor in self._actors if actor.role == "shell"]
        others = [a for a in self._actors if a not in [*watching, *answering, *shells]]
        await self._await_end(others)
        if answering:
            await self._await_answers(answering)
        await self._await_end(answering)
        await self._server.query(_WRITE_MARKER, MARKER)
        self._watchers = [actor.name for actor in [*watching, *shells]]
        await self._await_end(watching, ask=False)
        await self._await_marker(shells)
        await self._await_end(shells)

    async def _await_end(self, actors: Sequence[Actor], ask: bool = True) -> None:
        for actor in actors:
            self._injector.revive(actor)
            if ask:
                actor.leave()
        deadline = time.monotonic() + self._plan.patience
        for actor in actors:
            while actor.process.poll() is None and time.monotonic() < deadline:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            if actor.process.poll() is None:
                self._report.violations.append(f"{actor.name} did not end")
            elif complaint := actor.complaint():
                self._report.violations.append(complaint)

    async def _await_marker(self, shells: Sequence[Actor]) -> None:
        """Wait until scripts have read all that was told them."""
        deadline = time.monotonic() + self._plan.patience
        for shell in shells:
            while not shell.ear.knows(MARKER) and time.monotonic() < deadline:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def _await_answers(self, answering: Sequence[Actor]) -> None:
        """Wait until nothing waits; what failed because its hosts were killed is tried again."""
        open_states = "SELECT id, state, turn_id FROM assistant.messages WHERE role = 'user' AND "
        open_states += "state <> 'answered' AND source = 'cli'"
        deadline = time.monotonic() + 3 * self._plan.patience
        database = Database(self._server.near)
        while (rows := await self._server.query(open_states)) and time.monotonic() < deadline:
            failed = [row for row in rows if row["state"] == "failed"]
            self._retried += [str(row["id"]) for row in failed]
            for turn in {row["turn_id"] for row in failed}:
                await retry_turn(database, turn)
            for actor in answering:
                self._injector.revive(actor)
            await asyncio.sleep(0.1)
        await database.close()

    def end(self) -> None:
        """Leave no process behind."""
        self._injector.end()
        for actor in self._actors:
            actor.kill()

    async def final(self) -> Final:
        """What is stored now."""
        self._report.counts = self._injector.counts
        broken = await self._server.query("SELECT sum(deadlocks)::int AS n FROM pg_stat_database")
        # Since the server crashed last, which forgets how many there were.
        self._report.counts["broken deadlock"] = broken[0]["n"]
        self._report.takeovers = self._injector.takeovers
        self._report.violations += self._injector.violations
        final = read_store(self._server.admin)
        return replace(final, watchers=self._watchers, retried=self._retried)
