"""A copy of the program with a bug in it must not pass the campaign."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from .campaign import run_campaign
from .plan import PROJECT, Plan


@dataclass(frozen=True)
class Bug:
    """A change of the source, traffic that meets it, and what the checker says then."""

    file: str
    right: str
    wrong: str
    plan: Plan
    violation: str
    slow: bool = True


BUGS = {
    "skip the fencing test": Bug(
        "store/leases.py",
        '    query = _SQL["guard_alone" if alone',
        '    return\n    query = _SQL["guard_alone" if alone',
        Plan(1, calm=6, patience=8, actors={"send": 2, "answer": 3}),
        "was given",
        slow=False,
    ),
    "acknowledge before the commit": Bug(
        "store/inbox.py",
        "    try:\n        first = await _put(database, parameters)\n",
        "    import asyncio\n\n"
        "    putting = asyncio.create_task(_put(database, parameters))\n"
        "    putting.add_done_callback(lambda task: task.exception())\n"
        "    return UUID(str(parameters['id']))\n"
        "    try:\n        first = await _put(database, parameters)\n",
        Plan(1, kills=4, restarts=4, pace=0.4, actors={"send": 4, "host": 1}),
        "was acknowledged and is lost",
    ),
    "a high-water mark in the watch": Bug(
        "store/watch.py",
        "if self._shown.get(entry.key) != entry.revision]",
        "if entry.revision > max(self._shown.values(), default=0)]",
        Plan(1, calm=5, epoch=0.25, actors={"keys": 4, "watch": 1}),
        "was never delivered",
        slow=False,
    ),
    "read, modify and write the board": Bug(
        "store/board.py",
        "            cursor = await connection.execute(_SQL[query], parameters)\n",
        '            row = await (await connection.execute(_SQL["read"])).fetchone()\n'
        "            entries = {**_entries_of(row), **{u.agent: u.entry for u in batch}}\n"
        "            cursor = await connection.execute(\n"
        "                \"INSERT INTO kv VALUES ('status_board', %s::jsonb) ON CONFLICT (key) \"\n"
        '                "DO UPDATE SET value = excluded.value RETURNING %s::jsonb",\n'
        "                (json.dumps(entries), 'true' if len(batch) == 1 else '[]'),\n"
        "            )\n",
        Plan(1, calm=4, actors={"hold": 1, "report": 3}),
        "board: ",
    ),
    "ignore that LISTEN is lost": Bug(
        "store/follow.py",
        '        raise DatabaseUnreachableError("the connection was lost") from error\n',
        "        await asyncio.Event().wait()\n",
        Plan(1, restarts=1, calm=1, patience=8, actors={"keys": 2, "watch": 2}),
        "never came to the end",
    ),
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if BUGS[name].slow else ()) for name in BUGS]
)
async def test_a_planted_bug_is_found(name: str, place: Path) -> None:
    bug = BUGS[name]
    for package in ("assistant_cli", "tests"):
        shutil.copytree(PROJECT / package, place / "copy" / package)
    source = place / "copy" / "assistant_cli" / bug.file
    text = source.read_text("utf-8")
    assert text.count(bug.right) == 1
    source.write_text(text.replace(bug.right, bug.wrong), "utf-8")
    plan = replace(bug.plan, project=place / "copy")
    report = await run_campaign(plan, place / "home", place / "histories")
    assert any(bug.violation in line for line in report.violations), report.violations


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", BUGS)
async def test_the_same_traffic_finds_nothing_without_the_bug(name: str, place: Path) -> None:
    report = await run_campaign(BUGS[name].plan, place / "home", place / "histories")
    assert report.violations == []
