"""What only this server knows, where its standbys should know it too, is not called done."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from .conftest import CommandLine, eventually
from .password_server import PasswordServer


@pytest.fixture
def no_standby(
    password_server: PasswordServer, environment: dict[str, str]
) -> Iterator[tuple[CommandLine, psycopg.Connection[tuple[object, ...]]]]:
    """A command line on a server whose commits wait for a standby that is away."""
    options = "?options=-csynchronous_commit%3Doff"
    with psycopg.connect(password_server.url() + options, autocommit=True) as admin:
        admin.execute("TRUNCATE kv, assistant.messages CASCADE")
        admin.execute("ALTER SYSTEM SET synchronous_standby_names = 'away'")
        admin.execute("SELECT pg_reload_conf()")
        url = password_server.url("runtime")
        command_line = CommandLine({**environment, "ASSISTANT_DATABASE_URL": url})
        try:
            yield command_line, admin
        finally:
            admin.execute("ALTER SYSTEM RESET synchronous_standby_names")
            admin.execute("SELECT pg_reload_conf()")
            command_line.end_all()


def break_off(admin: psycopg.Connection[tuple[object, ...]]) -> None:
    """End the wait for the standby once there is one."""

    def waiting() -> list[tuple[object, ...]]:
        return admin.execute(
            "SELECT pid, query_start FROM pg_stat_activity "
            "WHERE wait_event = 'SyncRep' AND usename = 'runtime'"
        ).fetchall()

    eventually(waiting, "the wait")
    ((pid, began),) = waiting()
    admin.execute("SELECT pg_cancel_backend(%s)", (pid,))
    eventually(lambda: (pid, began) not in waiting(), "the end of the wait")


@pytest.mark.parametrize(
    "command", [("kv", "set", "k", "1"), ("send", "hello", "--id", "1"), ("report", "a", "idle")]
)
def test_a_write_that_no_standby_confirmed_is_not_done(
    no_standby: tuple[CommandLine, psycopg.Connection[tuple[object, ...]]],
    command: tuple[str, ...],
) -> None:
    assistant, admin = no_standby
    process = assistant.start(*command)
    # A message is sent once more before anybody is troubled, and waits again.
    for _ in range(2 if command[0] == "send" else 1):
        break_off(admin)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, len(err.splitlines())) == (69, "", 1), err
    assert "the standbys have not confirmed it" in err
