"""What a row is, and how its contestants are measured: side by side, again and again."""

from __future__ import annotations

import os
import statistics
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass
from typing import Any

from .server import Server

Contestants = Mapping[str, Callable[[], Awaitable[float]]]
"""What is compared, by name, each measured by a call; the first is ours."""


@dataclass(frozen=True)
class Size:
    """How much work there is in a round.

    Attributes:
        samples: calls of what takes a moment, of which the median counts.
        seconds: how long a rate is taken for.
        idle_seconds: how long an idle program is looked at.
        events: changes that are watched, and messages that are answered one by one.
        messages: messages that are answered as fast as they can be.
        keys: keys that are exported and imported.
        growth: keys, and messages, from few to many.
        agents: agents on the board, from few to many.
        watchers: watchers, from few to many.
    """

    samples: int = 10
    seconds: float = 3.0
    idle_seconds: float = 30.0
    events: int = 300
    messages: int = 1_000
    keys: int = 100_000
    growth: tuple[int, ...] = (100, 10_000, 1_000_000)
    agents: tuple[int, ...] = (2, 100, 1_000)
    watchers: tuple[int, ...] = (1, 10, 100)


SMALL = Size(1, 0.1, 0.2, 3, 10, 50, (10, 20, 30), (2, 3, 4), (1, 2, 3))
"""Shows in seconds that everything runs; its figures mean nothing."""


@dataclass(frozen=True)
class Goal:
    """A bound on the ratio of the first contestant to the second, or on the only one's figure."""

    bound: float
    at_least: bool = False

    def reached(self, figure: float) -> bool:
        """Whether a figure keeps the bound."""
        return figure >= self.bound if self.at_least else figure <= self.bound

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.bound:g}"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        prepare: sets the contestants up for all rounds.
        goal: None: the figures are only shown.
        samples: whether a round is the median of several calls, in turns.
        baselines: how many contestants after the first it is compared with, the best counting.
        flush_ms: how much longer the server is made to take for each flush of its log.
    """

    title: str
    unit: str
    prepare: Callable[[Server, Size], AbstractAsyncContextManager[Contestants]]
    goal: Goal | None = None
    samples: bool = False
    baselines: int = 1
    flush_ms: float = 0


@dataclass(frozen=True)
class Result:
    """What was measured: a figure a round for each contestant.

    Attributes:
        load: of the machine in the minute before.
    """

    title: str
    unit: str
    goal: Goal | None
    load: float
    baselines: int
    figures: Mapping[str, list[float]]

    @property
    def ratios(self) -> list[float]:
        """The first contestant to the best of its baselines, a round; without any, nothing."""
        first, *others = self.figures.values()
        best = max if self.goal is not None and self.goal.at_least else min
        rounds = zip(first, *others[: self.baselines], strict=True)
        return [ours / best(theirs) for ours, *theirs in rounds if theirs]

    @property
    def judged(self) -> float:
        """The figure that the goal bounds."""
        return statistics.median(self.ratios or next(iter(self.figures.values())))

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Result:
        """A result as it was kept."""
        goal = stored["goal"]
        return cls(**{**stored, "goal": goal and Goal(**goal)})

    def to_json(self) -> dict[str, Any]:
        """The result as it is kept."""
        rounded = {name: [float(f"{x:.4g}") for x in row] for name, row in self.figures.items()}
        return {**asdict(self), "figures": rounded}


async def measure(row: Row, server: Server, size: Size, rounds: int) -> Result:
    """Measure the contestants of a row in turns."""
    load = round(os.getloadavg()[0], 2)
    figures: dict[str, list[float]] = {}
    server.delay_flushes(row.flush_ms)
    async with row.prepare(server, size) as contestants:
        for _ in range(rounds):
            taken = await _round(contestants, size.samples if row.samples else 1)
            for name, figure in taken.items():
                figures.setdefault(name, []).append(figure)
    return Result(row.title, row.unit, row.goal, load, row.baselines, figures)


async def _round(contestants: Contestants, samples: int) -> dict[str, float]:
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(samples):
        order = list(contestants) if number % 2 == 0 else list(contestants)[::-1]
        for name in order:
            taken[name].append(await contestants[name]())
    return {name: statistics.median(figures) for name, figures in taken.items()}
