"""The campaign: clients and agents at work on one server, faults between them, then the check.

All choices follow from the seed; the moments at which they meet the work do not.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, assert_never

from psycopg.conninfo import make_conninfo

from assistant_cli.store.answering import retry_turn
from assistant_cli.store.database import Database

from .checker import check
from .client import EPOCH_VARIABLE, RENEWAL_VARIABLE
from .final import MARKER, Final, keep_final, read_store
from .history import read_history
from .plan import Fault, Kill, Leave, Network, Plan, Restart, Stop, Terminate
from .server import Server

MODEL = "command:sleep 0.02; sed 's/^/re: /'"

_KILLED = -signal.SIGKILL
_ASKED_TO_END = {0, -signal.SIGTERM, 128 + signal.SIGTERM}
"""How a process ends that is asked to, also before it is ready for that, or twice."""


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
    seconds: float = 0.0
    violations: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        faults = ", ".join(f"{name} {count}" for name, count in sorted(self.counts.items()))
        return (
            f"seed {self.seed}: {self.seconds:.0f}s; {faults}; {self.operations} calls "
            f"({self.unknown} with unknown outcome), {self.deliveries} deliveries, "
            f"{self.messages} messages ({self.retried} retried by hand); "
            f"{len(self.violations)} violations"
        )


class Actor:
    """A process with a role; started again it has another name, and so another history."""

    def __init__(self, role: str, number: int, plan: Plan, folder: Path, dsn: str) -> None:
        self.role = role
        self._stem = f"{role}{number}"
        self._plan = plan
        self._folder = folder
        self._dsn = dsn
        self._lives = 0
        self.process: subprocess.Popen[bytes]
        self.start()

    @property
    def name(self) -> str:
        return f"{self._stem}-{self._lives}"

    def start(self) -> None:
        self._lives += 1
        self._asked = False
        dsn = make_conninfo(self._dsn, application_name=self.name)
        if self.role == "host":
            command = ["tests.faults.hosting", "--standby", "--heartbeat", "3s", "--model", MODEL]
        else:
            seed = f"{self._plan.seed}/{self.name}"
            folder = str(self._folder)
            command = ["tests.faults.client", self.role, self.name, seed, folder, dsn]
        with (self._folder / f"{self.name}.err").open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=self._plan.project,
                env={
                    **os.environ,
                    "ASSISTANT_DATABASE_URL": dsn,
                    RENEWAL_VARIABLE: str(self._plan.renewal),
                    EPOCH_VARIABLE: str(self._plan.epoch),
                },
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                start_new_session=True,
            )

    def kill(self) -> None:
        """End the process, and a model's command that it may have started is left alone."""
        self.process.kill()
        self.process.wait()

    def leave(self) -> None:
        """Ask the process to end."""
        self._asked = True
        self.process.send_signal(signal.SIGTERM)

    def complaint(self) -> str | None:
        """What is wrong about the way in which the process ended by itself, if anything."""
        code = self.process.returncode
        # A host leaves when it lost its lease, or found no database when it started.
        if code == _KILLED or (self.role == "host" and code in {5, 69}):
            return None
        if (self._asked or self.role == "watch") and code in _ASKED_TO_END:
            return None
        said = (self._folder / f"{self.name}.err").read_text("utf-8", "replace").splitlines()
        return f"{self.name} ended with {code}: {' / '.join(said[-3:])}"


async def run_campaign(plan: Plan, home: Path, folder: Path) -> Report:
    """Run a campaign; the histories stay in the folder.

    Args:
        home: for the server, which is made there; other users must be able to reach it.
    """
    began = time.monotonic()
    report = Report(plan.seed)
    server = Server(home)
    async with server.serve():
        campaign = _Campaign(plan, server, folder, report)
        try:
            await campaign.rage()
            await campaign.settle()
        finally:
            campaign.end()
        final = campaign.final()
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
    def __init__(self, plan: Plan, server: Server, folder: Path, report: Report) -> None:
        self._plan = plan
        self._server = server
        self._report = report
        self._choices = random.Random(f"{plan.seed}/pauses")
        self._tasks: set[asyncio.Task[None]] = set()
        self._watchers: list[str] = []
        self._retried: list[str] = []
        self._actors = [
            Actor(role, number, plan, folder, server.far if number % 2 else server.near)
            for number, role in enumerate(plan.roles)
        ]

    async def rage(self) -> None:
        """Inject all faults; whoever dies is started again."""
        supervising = asyncio.create_task(self._supervise())
        await self._await_start()
        for fault in self._plan.faults():
            await self._inject(fault)
            name = type(fault).__name__.lower()
            self._report.counts[name] = self._report.counts.get(name, 0) + 1
            await asyncio.sleep(self._choices.uniform(0, 2 * self._plan.pace))
        await asyncio.gather(asyncio.sleep(self._plan.calm), *self._tasks)
        supervising.cancel()

    async def _await_start(self) -> None:
        """Wait until everybody has found the server."""
        connected = "SELECT DISTINCT application_name FROM pg_stat_activity"
        missing = {actor.name for actor in self._actors}
        while missing:
            await asyncio.sleep(self._plan.pace)
            missing -= {row["application_name"] for row in self._server.query(connected)}

    async def _supervise(self) -> None:
        while True:
            for actor in self._actors:
                self._revive(actor)
            await asyncio.sleep(0.05)

    def _revive(self, actor: Actor) -> None:
        if actor.process.poll() is not None:
            complaint = actor.complaint()
            if complaint is not None:
                self._report.violations.append(complaint)
            actor.start()

    async def _inject(self, fault: Fault) -> None:
        match fault:
            case Kill(actor):
                self._revive(self._actors[actor])
                self._actors[actor].kill()
            case Leave(actor):
                self._revive(self._actors[actor])
                self._actors[actor].leave()
            case Stop(actor, seconds):
                self._meanwhile(self._stop(self._actors[actor].process, seconds))
            case Restart(how):
                await self._server.restart(how)
            case Terminate(share):
                self._server.query(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() "
                    "AND random() < %s",
                    share,
                )
            case Network("reset", _):
                self._server.proxy.reset()
            case Network(kind, seconds):
                self._meanwhile(self._spoil(kind, seconds))
            case _:
                assert_never(fault)

    def _meanwhile(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _stop(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(seconds)
        process.send_signal(signal.SIGCONT)

    async def _spoil(self, kind: Any, seconds: float) -> None:
        self._server.proxy.spoil(kind)
        await asyncio.sleep(seconds)
        self._server.proxy.mend()

    async def settle(self) -> None:
        """Let everybody finish: clients, then the agents, then the watchers."""
        watching = [actor for actor in self._actors if actor.role == "watch"]
        answering = [actor for actor in self._actors if actor.role in {"host", "answer"}]
        others = [actor for actor in self._actors if actor not in [*watching, *answering]]
        await self._await_end(others)
        if answering:
            await self._await_answers(answering)
        await self._await_end(answering)
        self._server.query("INSERT INTO kv (key, value) VALUES (%s, '0')", MARKER)
        self._watchers = [actor.name for actor in watching]
        await self._await_end(watching, ask=False)

    async def _await_end(self, actors: Sequence[Actor], ask: bool = True) -> None:
        for actor in actors:
            if actor.process.poll() is not None:
                self._revive(actor)
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

    async def _await_answers(self, answering: Sequence[Actor]) -> None:
        """Wait until nothing waits; what failed because its hosts were killed is tried again."""
        open_states = "SELECT id, state, turn_id FROM assistant.messages WHERE role = 'user' AND "
        open_states += "state <> 'answered' AND source = 'cli'"
        deadline = time.monotonic() + 3 * self._plan.patience
        database = Database(self._server.near)
        while (rows := self._server.query(open_states)) and time.monotonic() < deadline:
            failed = [row for row in rows if row["state"] == "failed"]
            self._retried += [str(row["id"]) for row in failed]
            for turn in {row["turn_id"] for row in failed}:
                await retry_turn(database, turn)
            for actor in answering:
                self._revive(actor)
            await asyncio.sleep(0.1)
        await database.close()

    def end(self) -> None:
        """Leave no process behind."""
        for task in self._tasks:
            task.cancel()
        for actor in self._actors:
            actor.kill()

    def final(self) -> Final:
        """What is stored now."""
        final = read_store(self._server.near)
        return replace(final, watchers=self._watchers, retried=self._retried)
