"""What a campaign does: its faults, all of which follow from the seed, and who is at work."""

from __future__ import annotations

import random
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .client import LEASE

PROJECT = Path(__file__).resolve().parent.parent.parent
EVERYBODY = {
    "keys": 3,
    "watch": 2,
    "hold": 2,
    "report": 2,
    "send": 2,
    "host": 2,
    "worker": 1,
    "shell": 1,
}

NETWORKS = ["reset", "delay", "freeze", "lose requests", "lose answers"]
SETTINGS = [
    ("statement_timeout", "1ms"),
    ("statement_timeout", "20ms"),
    ("lock_timeout", "1ms"),
    ("default_transaction_read_only", "on"),
]
TABLES = [
    "public.kv",
    "assistant.messages",
    "assistant.turns",
    "assistant.leases",
    "assistant.board_events",
]


@dataclass(frozen=True)
class Kill:
    """SIGKILL to a client or to `assistant run`; it is started again."""

    actor: int


@dataclass(frozen=True)
class Leave:
    """SIGTERM to one of those that run `assistant run`; it is started again."""

    actor: int


@dataclass(frozen=True)
class Stop:
    """SIGSTOP for longer than a lease, then SIGCONT."""

    actor: int
    seconds: float


@dataclass(frozen=True)
class Restart:
    """SIGINT (fast), SIGQUIT (immediate) or SIGKILL to the server, which is started again."""

    signal: signal.Signals


@dataclass(frozen=True)
class Terminate:
    """The administrator ends a share of the connections."""

    share: float


@dataclass(frozen=True)
class Network:
    """The network of half of the clients is bad for a while, or resets what is open."""

    fault: Any
    seconds: float


@dataclass(frozen=True)
class Setting:
    """The administrator sets a parameter of the server for a while."""

    name: str
    value: str
    seconds: float


@dataclass(frozen=True)
class Deadlock:
    """The administrator locks two tables in an order of their own, the second after a pause.

    Whoever waits for the first since less than `deadlock_timeout`, 1 s, and holds the second loses.
    """

    tables: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Crowd:
    """Somebody takes all connections of the server, also some that were taken, for a while."""

    seconds: float


@dataclass(frozen=True)
class Fill:
    """The server's disk is full for a while; `panic`: also when it wants to write more WAL."""

    panic: bool
    seconds: float


@dataclass(frozen=True)
class Deafen:
    """A script does not read what `kv watch` tells it; another program listens and never reads."""

    actor: int
    seconds: float


@dataclass(frozen=True)
class Isolate:
    """The network of whoever holds the agents freezes, that of its successor as well, and so on.

    Attributes:
        holders: how many, one after the other.
        others: the share of those that stand by whose network freezes with the first of them.
        seconds: how long it lasts once the last of them has a successor.
    """

    holders: int
    others: float
    seconds: float


Strain = Setting | Deadlock | Crowd | Fill
Fault = Kill | Leave | Stop | Restart | Terminate | Network | Strain | Deafen | Isolate


@dataclass(frozen=True)
class Plan:
    """What a campaign does.

    Attributes:
        server: `embedded`, `pooler` (with PgBouncer before it), or `failover`: a primary and a
            standby it waits for, where each restart is a failover.
        isolations: how often the holders are cut off, each host by a network of its own.
        disk: the megabytes of the server's disk, which is then full at times; 0: it is this host's.
        pace: the mean pause between two faults, in seconds.
        calm: seconds of work after the last fault.
        patience: seconds in which everybody must come to an end afterwards.
        renewal: seconds between renewals of a lease; with more than a lease, all of them lapse.
        epoch: seconds after which clients go on with other keys.
        actors: how many of each role.
        project: the folder with the packages `assistant_cli` and `tests` that the clients run.
    """

    seed: int
    kills: int = 0
    restarts: int = 0
    others: int = 0
    server: str = "embedded"
    isolations: int = 0
    disk: int = 0
    pace: float = 0.6
    calm: float = 0.0
    patience: float = 30.0
    renewal: float = 0.5
    epoch: float = 2.0
    actors: dict[str, int] = field(default_factory=lambda: dict(EVERYBODY))
    project: Path = PROJECT

    @property
    def roles(self) -> list[str]:
        """The role of each actor."""
        return [role for role, count in self.actors.items() for _ in range(count)]

    def faults(self) -> list[Fault]:
        """The faults in their order."""
        choices = random.Random(self.seed)
        everybody = range(len(self.roles))
        ways = [signal.SIGINT, signal.SIGQUIT, signal.SIGKILL]
        lease = LEASE.total_seconds()
        faults: list[Fault] = [
            *(Kill(choices.choice(everybody)) for _ in range(self.kills)),
            *(Restart(choices.choice(ways)) for _ in range(self.restarts)),
        ]
        while len(faults) < self.kills + self.restarts + self.others:
            # All kinds come about equally often.
            kinds = self._others(choices)
            choices.shuffle(kinds)
            faults += kinds[: self.kills + self.restarts + self.others - len(faults)]
        for _ in range(self.isolations):
            share = choices.choice([0.0, 0.5])
            faults.append(Isolate(choices.choice([1, 1, 2, 3]), share, choices.uniform(0, lease)))
        choices.shuffle(faults)
        return faults

    def _others(self, choices: random.Random) -> list[Fault]:
        """One of each other kind."""
        everybody = range(len(self.roles))
        hosts = [actor for actor in everybody if self.roles[actor] == "host"]
        shells = [actor for actor in everybody if self.roles[actor] == "shell"]
        lease = LEASE.total_seconds()
        return [
            Stop(choices.choice(everybody), choices.uniform(lease, 2 * lease)),
            Terminate(choices.choice([0.2, 1.0])),
            Network(choices.choice(NETWORKS), choices.uniform(0.2, 2 * lease)),
            *(Leave(choices.choice(hosts)) for _ in hosts[:1]),
            Setting(*choices.choice(SETTINGS), choices.uniform(0.2, lease)),
            Deadlock(tuple(choices.sample(TABLES, 2)), choices.uniform(0.1, 0.8)),
            Crowd(choices.uniform(0.5, lease)),
            *(Fill(choices.random() < 0.5, choices.uniform(0.5, lease)) for _ in [0] if self.disk),
            *(
                Deafen(choices.choice(shells), choices.uniform(lease, 4 * lease))
                for _ in shells[:1]
            ),
        ]
