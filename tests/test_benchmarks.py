"""The benchmarks run, and what they tell on any machine, busy or not: never a time."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TextIO
from xml.etree import ElementTree

import pytest

from assistant_cli.messages import Reply
from assistant_cli.store import inbox, leases
from assistant_cli.store.board import StatusBoard
from assistant_cli.store.database import Database
from assistant_cli.store.status import get_snapshot

from .benchmarks.__main__ import ROWS, main
from .benchmarks.board import entry
from .benchmarks.growth import bytes_an_update
from .benchmarks.measuring import Goal, Result
from .benchmarks.report import Report
from .hosting import worker_of

SOME_ROWS = ["help", "board-32", "watch-p50", "import", "reply", "idle-memory", "growth-wal"]


def test_rows_are_measured_and_kept_as_data_table_and_picture(tmp_path: Path) -> None:
    main([*SOME_ROWS, "--small", "--rounds", "1", "--folder", str(tmp_path)])
    data = json.loads((tmp_path / "performance.json").read_text("utf-8"))
    assert list(data) == SOME_ROWS
    for name, result in data.items():
        assert all(len(figures) == 1 for figures in result["figures"].values()), name
    table = (tmp_path / "performance.md").read_text("utf-8")
    assert all(f"| `{name}` | {ROWS[name].title} |" in table for name in SOME_ROWS)
    ElementTree.parse(tmp_path / "performance.svg")


def test_a_row_that_is_run_again_replaces_only_its_own_result(tmp_path: Path) -> None:
    def result(figure: float) -> Result:
        return Result("a title", "ms", Goal(2), 0.5, 1, {"ours": [figure], "theirs": [1.0]})

    report = Report(tmp_path)
    order = ["first", "second"]
    report.keep({"second": result(3.0)}, order)
    page = tmp_path / "performance.md"
    page.write_text(f"before\n{page.read_text('utf-8')}after\n", "utf-8")
    report.keep({"first": result(1.0), "second": result(1.5)}, order)
    text = page.read_text("utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert text.count("| `second` |") == 1
    assert "1.50\N{MULTIPLICATION SIGN} (1.50 to 1.50)" in text
    assert [known.judged for known in report.read().values()] == [1.0, 1.5]


async def _kv_get(database: Database) -> object:
    return await database.kv.get("k")


async def _kv_set(database: Database) -> object:
    return await database.kv.set("k", 1)


async def _update(database: Database) -> None:
    await StatusBoard(database).update("heartbeat", entry(1))


async def _send(database: Database) -> object:
    return await inbox.put_message(database, "hello", conversation="main")


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[TextIO]:
    """Where what goes over a traced connection is written to."""
    with (tmp_path / "wire").open("w+", encoding="utf-8") as file:
        yield file


@pytest.mark.parametrize(
    ("operation", "most"),
    [(_kv_get, 1), (_kv_set, 1), (_update, 1), (_send, 1), (get_snapshot, 8)],
)
async def test_an_operation_takes_no_more_round_trips_than_it_needs(
    database: Database,
    wire: TextIO,
    operation: Callable[[Database], Awaitable[object]],
    most: int,
) -> None:
    async with database.connection() as connection:
        connection.pgconn.trace(wire.fileno())
    await operation(database)
    async with database.connection() as same:
        assert same is connection
        same.pgconn.untrace()
    wire.seek(0)
    asked = re.findall(r"\tF\t\d+\t(?:Query|Sync)\b", wire.read())
    assert 0 < len(asked) <= most


async def test_a_turn_is_begun_and_answered_in_one_round_trip_each(
    database: Database, wire: TextIO
) -> None:
    worker = worker_of(database, await leases.acquire(database, ["conversation"]))
    await _send(database)
    async with database.connection() as connection:
        connection.pgconn.trace(wire.fileno())
    (turn,) = await worker.claim("offline")
    await worker.keep(turn, [Reply(turn.messages, "hi")])
    connection.pgconn.untrace()
    wire.seek(0)
    assert len(re.findall(r"\tF\t\d+\t(?:Query|Sync)\b", wire.read())) == 2


async def test_an_update_of_the_board_writes_little_ahead(database: Database) -> None:
    assert await bytes_an_update(database, 100) < 1_500
