"""A URL that names a standby is good for looking; whoever writes waits for the primary."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

import psycopg
import pytest

from assistant_cli.store import inbox
from assistant_cli.store.database import Database

from .conftest import CommandLine, eventually
from .hosting import hosting, until
from .password_server import PasswordServer, primary_and_standby
from .postgres_server import PostgresServer
from .test_database_urls_and_logins import on
from .test_doctor_command import checks
from .test_failover import Watcher

REPLICATED = "SELECT FROM pg_stat_replication WHERE replay_lsn >= pg_current_wal_lsn()"


@dataclass
class Pair:
    """A primary and its standby."""

    primary: PostgresServer
    standby: PostgresServer

    def catch_up(self) -> None:
        """Wait until the standby shows all that was committed."""
        with psycopg.connect(self.primary.admin_dsn, autocommit=True) as connection:
            eventually(lambda: connection.execute(REPLICATED).rowcount, "the replication")

    def promote(self) -> None:
        """Let the standby go on as a primary."""
        with psycopg.connect(self.standby.admin_dsn, autocommit=True) as connection:
            connection.execute("SELECT pg_promote()")


@pytest.fixture
def pair() -> Iterator[Pair]:
    with primary_and_standby() as (primary, standby):
        yield Pair(primary, standby)


def url(server: PostgresServer, user: str = "runtime") -> str:
    return PasswordServer(server.port).url(user)


def say(assistant: CommandLine, word: str) -> None:
    """Change what the watches show."""
    assert assistant("kv", "set", "k", f'"{word}"').code == 0
    assert assistant("report", "backup", "running", word).code == 0
    assert assistant("send", word).code == 0


def test_watches_poll_a_standby_and_go_on_when_it_is_promoted(
    pair: Pair, environment: dict[str, str]
) -> None:
    say(on(environment, url(pair.primary)), "before")
    pair.catch_up()
    viewer = on(environment, url(pair.standby, "viewer"))
    try:
        commands = [("status", "--watch"), ("kv", "watch", "k"), ("history", "--follow")]
        watches = [Watcher(viewer.start(*command)) for command in commands]
        wait = viewer.start("wait", "backup", "--for", "idle")
        for watch in watches:
            watch.next("before")
        say(on(environment, url(pair.primary)), "meanwhile")
        for watch in watches:
            watch.next("meanwhile")
        assert on(environment, url(pair.primary))("report", "backup", "idle").code == 0
        assert (wait.wait(20), *wait.communicate()) == (0, "", "")
        pair.catch_up()
        pair.promote()
        say(on(environment, url(pair.standby)), "promoted")
        for watch in watches:
            watch.next("promoted")
            watch.process.kill()
            assert watch.process.communicate()[1] == ""
    finally:
        viewer.end_all()


def test_the_doctor_tells_that_a_standby_is_one(pair: Pair, environment: dict[str, str]) -> None:
    assert on(environment, url(pair.primary))("report", "backup", "idle").code == 0
    pair.catch_up()
    done = on(environment, url(pair.standby))("doctor", "--json")
    assert (done.code, done.err) == (69, "")
    found = checks(done)
    assert found["notifications"]["result"] == "do not arrive; watching polls"
    assert "use the primary's address where it is a standby" in found["writing"]["problem"]
    assert [name for name, check in found.items() if not check["ok"]] == ["writing"]


async def test_whoever_waits_for_a_reply_does_not_settle_for_a_standby(pair: Pair) -> None:
    primary, moving = Database(url(pair.primary)), Database(url(pair.standby))
    message = await inbox.put_message(primary, "hello", conversation="main")
    await asyncio.to_thread(pair.catch_up)
    reply = asyncio.create_task(inbox.wait_for_reply(moving, message))
    try:

        async def refused() -> bool:
            return moving.losses > 0

        await until(refused, "the refusal of the standby")
        # As an address does that moves to the primary.
        moving.dsn = primary.dsn
        async with hosting(primary, "command:tr a-z A-Z"):
            async with asyncio.timeout(20):
                assert await reply == "HELLO"
    finally:
        reply.cancel()
        await primary.close()
        await moving.close()
