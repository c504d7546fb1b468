"""Behind PgBouncer in transaction mode everything works, found out and not configured."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from assistant_cli.store.database import Database

from .conftest import CommandLine, eventually
from .hosting import ask, hosting, rows, until_equal
from .pooler import needs_pgbouncer

pytestmark = needs_pgbouncer


@pytest.fixture
def pooled(pooled_dsn: str, environment: dict[str, str]) -> Iterator[CommandLine]:
    command_line = CommandLine({**environment, "ASSISTANT_DATABASE_URL": pooled_dsn})
    yield command_line
    command_line.end_all()


def test_a_run_behind_it_answers_ticks_and_leaves(pooled: CommandLine) -> None:
    process = pooled.start_run("--model", "command:tr a-z A-Z", "--heartbeat", "1s")
    for word in ("hello", "again", "and", "once", "more", "often"):
        assert pooled("send", "--wait", word).out == f"{word.upper()}\n"
    assert pooled("send", "--wait", "/remind 1s tea").out.startswith("I will remind you")
    eventually(lambda: "Reminder: tea" in pooled("history").out, "the reminder")
    assert pooled("heartbeat", "now", "--wait").code == 0
    document = json.loads(pooled("status", "--json").out)
    assert [agent["live"] for agent in document["agents"]] == [True, True]
    assert pooled("run").code == 5
    process.terminate()
    assert process.wait(20) == 0
    assert pooled("status", "--check").code == 3


def test_every_kind_of_command_works_behind_it(pooled: CommandLine) -> None:
    watching = pooled.start("kv", "watch", "a", "-n", "2", "--timeout", "20s")
    assert watching.stdout is not None
    for number in range(8):
        assert pooled("kv", "set", f"k{number}", str(number)).code == 0
    assert pooled("kv", "set", "a", "1").code == 0
    assert watching.stdout.readline() == "1\n"
    assert pooled("kv", "incr", "a").out == "2\n"
    assert watching.stdout.readline() == "2\n"
    assert watching.wait(20) == 0
    exported = pooled("kv", "export").out
    assert exported.count("\n") == 9
    assert pooled("kv", "import", stdin=exported).code == 0
    assert pooled("kv", "rm", "k1", "k2").code == 0
    assert pooled("report", "backup", "running").code == 0
    assert pooled("wait", "backup", "--for", "running", "--timeout", "10s").code == 0
    assert pooled("track", "backup", "--", "true").code == 0
    assert pooled("schedule", "add", "--every", "1h", "tea").code == 0
    assert pooled("db", "migrate").code == 0


def test_doctor_tells_of_it(pooled: CommandLine, assistant: CommandLine) -> None:
    behind = json.loads(pooled("doctor", "--json").out)["checks"]
    results = {check["check"]: check["result"] for check in behind}
    assert results["pooler"].startswith("in front of the server")
    assert results["notifications"] == "do not arrive; watching polls"
    direct = json.loads(assistant("doctor", "--json").out)["checks"]
    assert "pooler" not in {check["check"] for check in direct}


async def test_what_is_said_often_is_prepared_nowhere(pooled_dsn: str) -> None:
    database = Database(pooled_dsn)
    try:
        async with hosting(database):
            for number in range(8):
                assert "offline" not in await ask(database, f"/remember {number}")
            await until_equal(
                database, "SELECT count(*) FROM kv WHERE starts_with(key, 'memory/')", [8]
            )
        assert await rows(database, "SELECT count(*) FROM pg_prepared_statements") == [0]
    finally:
        await database.close()
