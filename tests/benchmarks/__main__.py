"""Measure the program beside other programs, in turns, on one server.

    python -m tests.benchmarks [ROW]… [--rounds N] [--keys N]

Without names all rows are run. The results go to docs/performance.json, .md and .svg; those of
rows that are not run stay.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from . import board, growth, idle, inbox, keys, starts, turn_overhead
from .measuring import SMALL, Row, Size, measure
from .report import Report, format_range
from .server import started_server

ROWS: dict[str, Row] = {
    **starts.ROWS,
    **board.ROWS,
    **keys.ROWS,
    **inbox.ROWS,
    **turn_overhead.ROWS,
    **idle.ROWS,
    **starts.RUN_ROWS,
    **growth.ROWS,
}
# What a disk decides, again with one on which a flush takes 1 ms longer.
ROWS |= {
    f"{name}-1ms": replace(ROWS[name], title=f"{ROWS[name].title}, 1 ms more a flush", flush_ms=1.0)
    for name in (
        "board-1",
        "board-32",
        "board-32-processes",
        "kv-set",
        "watch-p50",
        "inbox",
        "inbox-conversations",
        "reply",
    )
}
DOCS = Path(__file__).parents[2] / "docs"


async def run(names: Sequence[str], size: Size, rounds: int, report: Report) -> None:
    """Run rows, and keep the results of each as soon as it is done."""
    async with started_server() as server:
        for name in names:
            result = await measure(ROWS[name], server, size, rounds)
            report.keep({name: result}, list(ROWS))
            for who, figures in result.figures.items():
                sys.stdout.write(f"{name:20} {who:45} {format_range(figures)} {result.unit}\n")
            if result.ratios:
                sys.stdout.write(f"{name:20} {'ratio':45} {format_range(result.ratios)}\n")
            sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the rows that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keys", type=int, help="keys to export and import [100000]")
    parser.add_argument("--small", action="store_true", help="only see that everything runs")
    parser.add_argument("--folder", type=Path, default=DOCS, help="where the results go")
    chosen = parser.parse_args(arguments)
    if unknown := set(chosen.rows) - ROWS.keys():
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    size = SMALL if chosen.small else Size()
    size = replace(size, keys=chosen.keys or size.keys)
    asyncio.run(run(chosen.rows or list(ROWS), size, chosen.rounds, Report(chosen.folder)))


if __name__ == "__main__":
    main()
