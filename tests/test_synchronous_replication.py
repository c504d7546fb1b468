"""What only this server knows, where its standbys should know it too, is not called done."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from .conftest import CommandLine, eventually
from .password_server import PasswordServer


class Standby:
    """The standby that commits wait for, which may be away, but never comes."""

    def __init__(self, admin: psycopg.Connection[tuple[object, ...]]) -> None:
        self._admin = admin

    def leave(self) -> None:
        """From now on commits wait."""
        self._admin.execute("ALTER SYSTEM SET synchronous_standby_names = 'away'")
        self._admin.execute("SELECT pg_reload_conf()")

    def be_forgotten(self) -> None:
        """Commits that wait are done, and none waits any more."""
        self._admin.execute("ALTER SYSTEM RESET synchronous_standby_names")
        self._admin.execute("SELECT pg_reload_conf()")

    def waiting(self) -> list[tuple[object, ...]]:
        """The commits that wait: their process and since when."""
        return self._admin.execute(
            "SELECT pid, query_start FROM pg_stat_activity "
            "WHERE wait_event = 'SyncRep' AND usename = 'runtime'"
        ).fetchall()

    def queued(self) -> int:
        """How many wait for a lock."""
        return self._admin.execute(
            "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND usename = 'runtime'"
        ).rowcount

    def break_off(self) -> None:
        """End the wait for the standby once there is one."""
        eventually(self.waiting, "the wait")
        ((pid, began),) = self.waiting()
        self._admin.execute("SELECT pg_cancel_backend(%s)", (pid,))
        eventually(lambda: (pid, began) not in self.waiting(), "the end of the wait")


@pytest.fixture
def standby(password_server: PasswordServer) -> Iterator[Standby]:
    options = "?options=-csynchronous_commit%3Doff"
    with psycopg.connect(password_server.url() + options, autocommit=True) as admin:
        admin.execute("TRUNCATE kv, assistant.messages, assistant.leases CASCADE")
        standby = Standby(admin)
        yield standby
        standby.be_forgotten()


@pytest.fixture
def runtime(
    standby: Standby, password_server: PasswordServer, environment: dict[str, str]
) -> Iterator[CommandLine]:
    """The command line of a user that runs the agents."""
    url = password_server.url("runtime")
    command_line = CommandLine({**environment, "ASSISTANT_DATABASE_URL": url})
    yield command_line
    standby.be_forgotten()
    command_line.end_all()


@pytest.mark.parametrize(
    "command", [("kv", "set", "k", "1"), ("send", "hello", "--id", "1"), ("report", "a", "idle")]
)
def test_a_write_that_no_standby_confirmed_is_not_done(
    runtime: CommandLine, standby: Standby, command: tuple[str, ...]
) -> None:
    standby.leave()
    process = runtime.start(*command)
    # A message is sent once more before anybody is troubled, and waits again.
    for _ in range(2 if command[0] == "send" else 1):
        standby.break_off()
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, len(err.splitlines())) == (69, "", 1), err
    assert "the standbys have not confirmed it" in err


def test_messages_that_wait_for_the_standbys_do_not_wait_for_each_other(
    runtime: CommandLine, standby: Standby
) -> None:
    standby.leave()
    senders = [runtime.start("send", text) for text in ("a", "b", "c")]
    eventually(lambda: len(standby.waiting()) + standby.queued() == 3, "the wait of all")
    assert standby.queued() == 0
    standby.be_forgotten()
    assert [sender.wait(timeout=30) for sender in senders] == [0, 0, 0]


def test_a_status_that_another_wrote_along_waits_for_the_standbys_itself(
    runtime: CommandLine, standby: Standby
) -> None:
    standby.leave()
    first = runtime.start("report", "a", "idle")
    eventually(standby.waiting, "the wait")
    others = [runtime.start("report", agent, "idle") for agent in ("b", "c")]
    eventually(lambda: standby.queued() == 2, "the others' wait for the first")
    standby.break_off()
    assert first.wait(timeout=30) == 69
    # One of them writes both entries.
    standby.break_off()
    eventually(lambda: 69 in [other.poll() for other in others], "the end of that one")
    assert len(standby.waiting()) == 1
    standby.be_forgotten()
    assert sorted(other.wait(timeout=30) for other in others) == [0, 69]


def test_a_run_waits_for_its_standbys_and_then_goes_on(
    runtime: CommandLine, standby: Standby
) -> None:
    run = runtime.start_run("--model", "command:tr a-z A-Z", "--heartbeat", "1s")
    assert run.stderr is not None
    assert runtime("send", "--wait", "before").out == "BEFORE\n"
    standby.leave()
    waiting = runtime.start("send", "--wait", "meanwhile")
    # That is when a lease, a tick and a message wait, all of them for the standby.
    assert any("cannot renew the lease" in line for line in run.stderr)
    assert runtime("kv", "get", "status_board", "conversation.status", "-r").out == "idle\n"
    standby.be_forgotten()
    assert waiting.communicate(timeout=30) == ("MEANWHILE\n", "")
    assert runtime("send", "--wait", "after").out == "AFTER\n"
    assert runtime("status", "--check", "conversation", "heartbeat").code == 0
    assert run.poll() is None
