"""Twenty that stand by, each behind a network of its own, and holders that are cut off."""

from __future__ import annotations

from pathlib import Path

import pytest

from .campaign import run_campaign
from .plan import Plan
from .test_campaign import SEED


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "isolations", [pytest.param(4, id="a few"), pytest.param(60, marks=pytest.mark.slow, id="many")]
)
async def test_one_of_twenty_holds_the_agents_whoever_is_cut_off(
    isolations: int, place: Path
) -> None:
    plan = Plan(SEED, isolations=isolations, pace=0.3, actors={"host": 20, "send": 2})
    report = await run_campaign(plan, place / "home", place / "histories")
    assert report.violations == [], report
    assert len(report.takeovers) >= isolations, report
    assert report.messages > 10 * isolations, report
