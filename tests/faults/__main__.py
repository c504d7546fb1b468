"""The long campaign: `python -m tests.faults --kills 1000 --restarts 200 --seed 1`."""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
from pathlib import Path

from .campaign import run_campaign
from .checker import check
from .final import read_final
from .history import read_history
from .plan import EVERYBODY, Plan


def main() -> int:
    """Run a campaign, or judge the histories of an earlier one again."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--restarts", type=int, default=200)
    parser.add_argument("--others", type=int, help="other faults; default: a third of the kills")
    behind = parser.add_mutually_exclusive_group()
    for kind, text in [
        ("pooler", "all goes through PgBouncer"),
        ("failover", "restarts are failovers"),
    ]:
        behind.add_argument(f"--{kind}", dest="server", action="store_const", const=kind, help=text)
    parser.add_argument("--hosts", type=int, default=2, help="how many `assistant run --standby`")
    parser.add_argument(
        "--isolations", type=int, default=0, help="how often the network of the holder freezes"
    )
    parser.add_argument(
        "--disk", type=int, default=0, help="megabytes of a disk that is full at times"
    )
    parser.add_argument("--pace", type=float, default=0.6, help="mean seconds between faults")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    parser.add_argument("--check", type=Path, metavar="FOLDER", help="only judge these histories")
    options = parser.parse_args()
    if options.check:
        violations = check(read_history(options.check), read_final(options.check))
        _say(*(violations or ["no violations"]))
        return bool(violations)
    others = options.kills // 3 if options.others is None else options.others
    plan = Plan(
        options.seed,
        kills=options.kills,
        restarts=options.restarts,
        others=others,
        server=options.server or "embedded",
        isolations=options.isolations,
        disk=options.disk,
        pace=options.pace,
        actors={**EVERYBODY, "host": options.hosts},
    )
    return _run(plan)


def _run(plan: Plan) -> int:
    work = Path(tempfile.mkdtemp(prefix="assistant-faults-", dir="/tmp"))
    # The server of root runs for an unprivileged account.
    work.chmod(0o711)
    folder = work / "histories"
    folder.mkdir()
    _say(f"seed {plan.seed}; histories in {folder}")
    report = asyncio.run(run_campaign(plan, work / "home", folder))
    shutil.rmtree(work / "home", ignore_errors=True)
    _say(str(report), *report.violations)
    if not report.violations:
        shutil.rmtree(work)
    return bool(report.violations)


def _say(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
