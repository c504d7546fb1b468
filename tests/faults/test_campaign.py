"""The short campaign; the long one is `python -m tests.faults`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ..pooler import needs_pgbouncer
from ..small_disk import needs_small_disk
from .campaign import run_campaign
from .plan import Plan

SEED = int(os.environ.get("FAULTS_SEED", "4"))

DISK = 0 if needs_small_disk.args[0] else 400
"""Where nobody may mount a small disk, it is never full."""


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "plan",
    [
        pytest.param(Plan(SEED, kills=12, restarts=3, others=18, disk=DISK), id="every fault"),
        pytest.param(
            Plan(SEED, kills=2, calm=6, renewal=6, actors={"hold": 2, "send": 2, "host": 2}),
            id="leases that lapse",
        ),
        pytest.param(
            Plan(SEED, kills=6, restarts=2, others=8, pace=0.4, server="pooler"),
            id="behind a pooler",
            marks=needs_pgbouncer,
        ),
        pytest.param(
            Plan(SEED, kills=4, restarts=2, others=8, pace=0.4, server="failover"),
            id="a primary that dies",
        ),
    ],
)
async def test_nothing_is_lost_nothing_done_twice_and_nothing_lies(plan: Plan, place: Path) -> None:
    report = await run_campaign(plan, place / "home", place / "histories")
    assert report.violations == [], report
    assert report.operations > 100, report


def test_a_plan_follows_from_its_seed() -> None:
    plan = Plan(1, kills=5, restarts=5, others=5)
    assert plan.faults() == Plan(1, kills=5, restarts=5, others=5).faults()
    assert plan.faults() != Plan(2, kills=5, restarts=5, others=5).faults()
