"""What the server refuses for a while is told in one line; `run` stays up and carries on."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from assistant_cli.errors import DatabaseUnreachableError
from assistant_cli.store.database import Database

from .conftest import CommandLine, eventually
from .hosting import Hold, until_equal
from .password_server import PasswordServer, set_up
from .postgres_server import PostgresServer, server_folder

Admin = psycopg.Connection[Any]

FILLED = ("public.kv", "assistant.messages", "assistant.turns", "assistant.leases")
FULL_DISK = """
CREATE OR REPLACE FUNCTION public.full_disk() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100';
END
$$
"""
NO_CONNECTION = "too many clients already|connection slots are reserved"
OLD_SLOT = "SELECT pg_create_logical_replication_slot('old', 'pgoutput')"
OLDEST_TRANSACTION = "SELECT min(datfrozenxid::text::bigint) FROM pg_database"
WAITING_FOR_A_LOCK = """
SELECT FROM pg_stat_clear_snapshot(), pg_stat_activity
WHERE usename = 'runtime' AND wait_event_type = 'Lock'
"""


@pytest.fixture
def admin(password_server: PasswordServer) -> Iterator[Admin]:
    """The owner of an empty database, on a server that refuses nothing."""
    with psycopg.connect(password_server.url(), autocommit=True) as connection:
        connection.execute(
            "TRUNCATE kv, assistant.messages, assistant.turns, assistant.leases CASCADE"
        )
        yield connection
        connection.rollback()
        connection.execute("ALTER ROLE runtime RESET ALL")
        connection.execute("ALTER SYSTEM RESET default_transaction_read_only")
        connection.execute("SELECT pg_reload_conf()")


@pytest.fixture
def assistant(
    admin: Admin, password_server: PasswordServer, environment: dict[str, str]
) -> Iterator[CommandLine]:
    url = password_server.url("runtime")
    command_line = CommandLine({**environment, "ASSISTANT_DATABASE_URL": url})
    yield command_line
    command_line.end_all()


@dataclass
class Run:
    """A `run` whose log can be read at any time."""

    process: subprocess.Popen[str]
    log: Path

    def says(self, part: str) -> None:
        eventually(lambda: part in self.log.read_text(), f"{part!r} in the log")


def start_run(assistant: CommandLine, model: str = "command:tr a-z A-Z") -> Run:
    log = Path(assistant.environment["HOME"], "run.log")
    with log.open("w") as file:
        run = Run(assistant.start("run", "--model", model, stderr=file), log)
    run.says("hosting")
    return run


def refused(assistant: CommandLine, *command: str) -> str:
    """The one line with which a command says that the database is not there for it."""
    done = assistant(*command)
    assert (done.code, done.out, len(done.err.splitlines())) == (69, "", 1), done.err
    return done.err


def check_at_work(assistant: CommandLine, run: Run) -> None:
    assert assistant("send", "--wait", "after all").out == "AFTER ALL\n"
    assert assistant("status", "--check", "conversation", "heartbeat").code == 0
    assert run.process.poll() is None
    assert "Traceback" not in run.log.read_text()


def take_all_connections(admin: Admin, dsn: str, taken: ExitStack) -> None:
    """Leave no connection for anybody else, also none of those that there are."""
    theirs = "SELECT pid FROM pg_stat_activity WHERE usename = 'runtime'"
    while True:
        try:
            while True:
                taken.enter_context(psycopg.connect(dsn))
        except psycopg.OperationalError:
            if not admin.execute(theirs).rowcount:
                return
        admin.execute(f"SELECT pg_terminate_backend(pid, 5000) FROM ({theirs})".encode())


def fill_notification_queue(admin: Admin) -> None:
    """Announce until the server takes no more; somebody keeps it from forgetting any."""
    with suppress(psycopg.errors.ProgramLimitExceeded):
        while True:
            admin.execute("SELECT pg_notify('anything', repeat('x', 7000))")


def test_a_user_has_so_many_watches_and_no_more_and_others_go_on(
    assistant: CommandLine, admin: Admin, password_server: PasswordServer
) -> None:
    run = start_run(assistant)
    url = password_server.url("viewer")
    viewer = CommandLine({**assistant.environment, "ASSISTANT_DATABASE_URL": url})
    theirs = "SELECT FROM pg_stat_activity WHERE usename = 'viewer'"
    admin.execute("ALTER ROLE viewer CONNECTION LIMIT 4")
    try:
        watches = [
            viewer.start(*command)
            for command in (
                ["status", "--watch"],
                ["kv", "watch", "k"],
                ["history", "--follow"],
                ["kv", "watch", "--prefix", ""],
            )
        ]
        eventually(lambda: admin.execute(theirs).rowcount == 4, "four connections")
        for command in (["status"], ["kv", "watch", "k"], ["doctor"]):
            done = viewer(*command)
            assert done.code == 69
            told = done.out if command == ["doctor"] else done.err
            assert 'too many connections for role "viewer": that is its CONNECTION LIMIT' in told
            assert "end a watch" in told
        assert len(refused(viewer, "status").splitlines()) == 1
        check_at_work(assistant, run)
        assert [watch.poll() for watch in watches] == [None] * 4
        watches[0].terminate()
        watches[0].wait(20)
        eventually(lambda: viewer("status").code == 0, "room")
    finally:
        viewer.end_all()
        admin.execute("ALTER ROLE viewer CONNECTION LIMIT -1")


def test_who_may_not_connect_is_refused_and_not_merely_unreached(
    assistant: CommandLine, admin: Admin
) -> None:
    admin.execute("ALTER ROLE runtime NOLOGIN")
    try:
        done = assistant("kv", "get", "k")
        assert (done.code, len(done.err.splitlines())) == (77, 1)
        assert "not permitted to log in" in done.err
    finally:
        admin.execute("ALTER ROLE runtime LOGIN")
    admin.execute("REVOKE CONNECT ON DATABASE app FROM PUBLIC")
    try:
        done = assistant("kv", "get", "k")
        assert (done.code, len(done.err.splitlines())) == (77, 1)
        assert 'permission denied for database "app"' in done.err
    finally:
        admin.execute("GRANT CONNECT ON DATABASE app TO PUBLIC")


def test_a_server_without_a_free_connection_is_waited_for(
    assistant: CommandLine, admin: Admin, password_server: PasswordServer
) -> None:
    run = start_run(assistant)
    with ExitStack() as taken:
        take_all_connections(admin, password_server.url(), taken)
        run.says("cannot renew the lease, trying on")
        for command in (["kv", "get", "k"], ["send", "hello"]):
            assert re.search(NO_CONNECTION, refused(assistant, *command))
    check_at_work(assistant, run)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("statement_timeout", "SQLSTATE 57014"),
        pytest.param("lock_timeout", "SQLSTATE 55P03", marks=pytest.mark.slow),
    ],
)
def test_what_the_server_breaks_off_is_tried_again_by_a_run_and_told_by_a_command(
    assistant: CommandLine, admin: Admin, tmp_path: Path, setting: str, told: str
) -> None:
    admin.execute(f"ALTER ROLE runtime SET {setting} = '300ms'".encode())
    hold = Hold(tmp_path)
    hold.close()
    run = start_run(assistant, hold.model)
    waiting = assistant.start("send", "--wait", "hello")
    eventually(lambda: hold.asked, "the question")
    assert assistant("kv", "set", "k", "1").code == 0
    with admin.transaction():
        admin.execute("LOCK TABLE public.kv, assistant.turns IN SHARE MODE")
        hold.open()
        run.says(told)
        assert told in refused(assistant, "kv", "set", "k", "2")
        assert assistant("kv", "get", "k").out == "1\n"
    assert waiting.communicate(timeout=30)[0] == "re: hello\n"
    assert run.process.poll() is None


def test_a_reply_that_loses_a_deadlock_is_kept_after_all(
    assistant: CommandLine, admin: Admin, tmp_path: Path
) -> None:
    # Whoever waits that long looks for a deadlock, and is its victim.
    admin.execute("ALTER ROLE runtime SET deadlock_timeout = '2s'")
    admin.execute("SET deadlock_timeout = '1min'")
    hold = Hold(tmp_path)
    hold.close()
    run = start_run(assistant, hold.model)
    waiting = assistant.start("send", "--wait", "hello")
    # The heartbeat may have asked before, about what other tests have left.
    eventually(lambda: "hello" in hold.asked, "the question")
    with admin.transaction():
        admin.execute("SELECT FROM assistant.messages FOR UPDATE")
        hold.open()
        eventually(lambda: admin.execute(WAITING_FOR_A_LOCK).rowcount, "the reply")
        admin.execute("SELECT FROM assistant.turns FOR UPDATE")
    assert waiting.communicate(timeout=30)[0] == "re: hello\n"
    run.says("deadlock detected (SQLSTATE 40P01)")
    assert run.process.poll() is None


def test_a_full_disk_is_told_and_waited_for(assistant: CommandLine, admin: Admin) -> None:
    run = start_run(assistant)
    admin.execute(FULL_DISK)
    for table in FILLED:
        admin.execute(
            f"CREATE TRIGGER full_disk BEFORE INSERT OR UPDATE ON {table} "
            "EXECUTE FUNCTION public.full_disk()".encode()
        )
    try:
        for command in (["send", "hello"], ["kv", "set", "k", "1"], ["report", "a", "idle"]):
            told = refused(assistant, *command)
            assert "No space left on device (SQLSTATE 53100)" in told
        run.says("cannot renew the lease, trying on: could not extend file")
    finally:
        admin.execute("DROP FUNCTION public.full_disk CASCADE")
    check_at_work(assistant, run)


def test_a_server_that_is_read_only_is_told_and_waited_for(
    assistant: CommandLine, admin: Admin
) -> None:
    run = start_run(assistant)
    assert assistant("kv", "set", "k", "1").code == 0
    admin.execute("ALTER SYSTEM SET default_transaction_read_only = on")
    admin.execute("SELECT pg_reload_conf()")
    run.says("cannot renew the lease, trying on: cannot execute UPDATE in a read-only transaction")
    assert "this server is read-only" in refused(assistant, "kv", "set", "k", "2")
    assert "this server is read-only" in refused(assistant, "send", "hello")
    assert assistant("kv", "get", "k").out == "1\n"
    assert assistant("status", "--json").code == 0
    admin.execute("SET default_transaction_read_only = off")
    admin.execute("ALTER SYSTEM RESET default_transaction_read_only")
    admin.execute("SELECT pg_reload_conf()")
    check_at_work(assistant, run)


def test_a_user_who_is_read_only_is_told_of_the_setting_that_makes_it_so(
    assistant: CommandLine, admin: Admin
) -> None:
    admin.execute("ALTER ROLE runtime SET default_transaction_read_only = on")
    for command in (["kv", "set", "k", "1"], ["send", "hello"], ["run"]):
        assert "default_transaction_read_only" in refused(assistant, *command)
    assert "default_transaction_read_only" in assistant("doctor").out


@pytest.fixture
def announcing() -> Iterator[PasswordServer]:
    """A server of its own with the smallest queue of notifications."""
    with server_folder() as folder:
        server = PostgresServer(folder, "data")
        server.create()
        server.start(max_notify_queue_pages="64")
        try:
            yield set_up(server)
        finally:
            server.stop()


def test_a_full_queue_of_notifications_is_told_and_waited_for(
    announcing: PasswordServer, environment: dict[str, str]
) -> None:
    url = announcing.url("runtime")
    assistant = CommandLine({**environment, "ASSISTANT_DATABASE_URL": url})
    try:
        run = start_run(assistant)
        with psycopg.connect(announcing.url(), autocommit=True) as admin:
            with psycopg.connect(announcing.url(), autocommit=True) as listener:
                listener.execute("LISTEN anything")
                listener.execute("BEGIN")
                listener.execute("SELECT FROM kv")
                fill_notification_queue(admin)
                assert "end the session that listens" in refused(assistant, "kv", "set", "k", "1")
                assert "notification queue\t100% full" in assistant("doctor").out
                # It is kept before it is told of, so that it cannot be called refused.
                sent = assistant("send", "hello")
                assert (sent.code, sent.err) == (0, "")
                run.says("too many notifications")
            assert assistant("reply", sent.out.strip(), "--wait").out == "HELLO\n"
            check_at_work(assistant, run)
    finally:
        assistant.end_all()


@pytest.fixture
def aged() -> Iterator[PasswordServer]:
    """A server with a slot that keeps it from forgetting old transactions, and few to come."""
    with server_folder() as folder:
        server = PostgresServer(folder, "data")
        server.create()
        settings = {"wal_level": "logical", "autovacuum_naptime": "1s"}
        try:
            server.start(**settings)
            known = set_up(server)
            with psycopg.connect(known.url(), autocommit=True) as connection:
                connection.execute(OLD_SLOT)
                oldest = connection.execute(OLDEST_TRANSACTION).fetchone()
            server.stop()
            assert oldest is not None
            server.use_up_transactions(oldest[0], leave=500)
            server.start(**settings)
            yield known
        finally:
            server.stop()


def test_a_server_without_transactions_to_come_is_told_and_waited_for(
    aged: PasswordServer, environment: dict[str, str], tmp_path: Path
) -> None:
    url = aged.url("runtime")
    assistant = CommandLine({**environment, "ASSISTANT_DATABASE_URL": url})
    hold = Hold(tmp_path)
    hold.close()
    try:
        run = start_run(assistant, hold.model)
        waiting = assistant.start("send", "--wait", "hello")
        eventually(lambda: hold.asked, "the question")
        with psycopg.connect(aged.url(), autocommit=True) as admin:
            with suppress(psycopg.errors.ProgramLimitExceeded):
                while True:
                    admin.execute("SELECT pg_current_xact_id()")
            hold.open()
            run.says("database is not accepting commands")
            assert "VACUUM" in refused(assistant, "kv", "set", "k", "1")
            assert "VACUUM" in refused(assistant, "send", "hello")
            assert assistant("status", "--json").code == 0
            admin.execute("SELECT pg_drop_replication_slot('old')")
        assert waiting.communicate(timeout=60)[0] == "re: hello\n"
        assert run.process.poll() is None
    finally:
        assistant.end_all()


async def test_whoever_has_given_up_waits_for_no_lock_any_more(database: Database) -> None:
    lock = "SELECT pg_advisory_xact_lock(1)"
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory'"
    async with database.transaction() as holder:
        await holder.execute(lock)
        with pytest.raises(DatabaseUnreachableError, match="did not answer"):
            async with database.connection(patience=0.2) as connection:
                await connection.execute(lock)
        await until_equal(database, waiting, [0])
