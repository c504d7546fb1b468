"""Every command works under the least role it needs, and a refusal says which that is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from .conftest import CommandLine, Finished, eventually
from .password_server import ROLES, PasswordServer
from .postgres_server import PASSWORD
from .terminals import Terminal
from .test_help_and_completion import PATHS

# What each command needs, and how it ends for whoever has that; a command may be there twice.
READS = [
    (["status"], 0),
    (["status", "--json"], 0),
    (["status", "--history"], 0),
    (["wait", "conversation", "--for", "stopped", "--timeout", "10s"], 0),
    (["kv", "get", "greeting"], 0),
    (["kv", "get", "greeting", "hello"], 0),
    (["kv", "ls"], 0),
    (["kv", "exists", "greeting"], 0),
    (["kv", "export"], 0),
    (["kv", "watch", "greeting", "-n", "1", "--timeout", "10s"], 0),
    (["history"], 0),
    (["reply", "00000000-0000-4000-8000-000000000000"], 3),
    (["turns", "ls"], 0),
    (["turns", "show", "1"], 0),
    (["schedule", "ls"], 0),
    (["schedule", "show", "1"], 0),
    (["heartbeat", "last"], 3),
    (["memory", "show"], 0),
    (["memory", "search", "tea"], 0),
    (["db", "status"], 0),
    (["db", "migrate"], 0),
]
WRITES = [
    (["send", "hello"], 0),
    (["kv", "set", "greeting", "1"], 0),
    (["kv", "rm", "greeting"], 0),
    (["kv", "incr", "count"], 0),
    (["kv", "import"], 0),
    (["report", "backup", "idle"], 0),
    (["track", "backup", "--", "true"], 0),
    (["schedule", "add", "--every", "1h", "tea"], 0),
    (["schedule", "edit", "1", "coffee"], 0),
    (["schedule", "run", "1"], 0),
    (["schedule", "cancel", "1"], 0),
    (["heartbeat", "pause"], 0),
    (["heartbeat", "resume"], 0),
    (["heartbeat", "now"], 0),
    (["memory", "edit", "user"], 0),
    (["turns", "cancel", "2"], 0),
    (["turns", "retry", "1"], 0),
    (["run", "--until-idle"], 0),
]
# These need no role: they ask nothing of the database, or only whether it answers.
ROLELESS = [["db", "url"], ["db", "shell"]]
# These are for the embedded database, whose only user is its owner.
EMBEDDED = [["db", "start"], ["db", "stop"]]
# These have tests of their own.
APART = [["chat"], ["doctor"]]
LEAVES = [
    path for path in PATHS if not any(len(p) > len(path) and p[: len(path)] == path for p in PATHS)
]


@pytest.fixture
def server(password_server: PasswordServer) -> PasswordServer:
    with psycopg.connect(password_server.url(), autocommit=True) as connection:
        connection.execute(
            "TRUNCATE public.kv, assistant.messages, assistant.turns, assistant.schedules, "
            "assistant.leases, assistant.board_events RESTART IDENTITY CASCADE"
        )
        connection.execute("INSERT INTO kv (key, value) VALUES ('greeting', '{\"hello\": 1}')")
        connection.execute("INSERT INTO kv (key, value) VALUES ('memory/user', '\"likes tea\"')")
        connection.execute(
            "INSERT INTO assistant.turns (agent, trigger, token, model, outcome) VALUES "
            "('conversation', 'message', 1, 'm', 'failed'), "
            "('conversation', 'message', 1, 'm', 'running')"
        )
        connection.execute(
            "INSERT INTO assistant.messages "
            "(id, conversation, role, content, source, state, turn_id) VALUES "
            "(gen_random_uuid(), 'main', 'user', 'hello', 'cli', 'failed', 1)"
        )
        connection.execute(
            "INSERT INTO assistant.schedules (conversation, content, due_at) "
            "VALUES ('main', 'tea', now() + interval '1 h')"
        )
    return password_server


@pytest.fixture
def as_user(
    server: PasswordServer, environment: dict[str, str], tmp_path: Path
) -> Iterator[dict[str, CommandLine]]:
    users = {
        user: CommandLine(
            {
                **environment,
                "EDITOR": "sh -c 'echo more >> $0'",
                # Where an edit that is refused is kept.
                "TMPDIR": str(tmp_path),
                "ASSISTANT_DATABASE_URL": server.url(user),
            }
        )
        for user in ("runtime", "viewer", "stranger")
    }
    yield users
    for command_line in users.values():
        command_line.end_all()


def test_every_command_is_known_here_with_what_it_needs() -> None:
    known = [words for words, _ in [*READS, *WRITES]] + ROLELESS + EMBEDDED + APART
    for path in LEAVES:
        assert any(tuple(words[: len(path)]) == path for words in known), path


def refuses(done: Finished, role: str) -> None:
    assert (done.code, len(done.err.splitlines())) == (77, 1), done
    assert role in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(("command", "code"), READS, ids=str)
def test_a_reader_may_look_at_everything(
    as_user: dict[str, CommandLine], command: list[str], code: int
) -> None:
    done = as_user["viewer"](*command)
    assert done.code == code, done.err


@pytest.mark.parametrize(("command", "code"), WRITES, ids=str)
def test_a_reader_may_change_nothing_and_is_told_the_role(
    as_user: dict[str, CommandLine], server: PasswordServer, command: list[str], code: int
) -> None:
    if command == ["heartbeat", "now"]:
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute(
                "INSERT INTO assistant.leases (agent, token, host, pid, process, expires_at) "
                "VALUES ('heartbeat', 1, 'h', 1, 'p', now() + interval '50 s')"
            )
    before = contents(server)
    done = as_user["viewer"](*command, stdin='{"key": "k", "value": 1}\n')
    assert done.out == ""
    refuses(done, "assistant_runtime")
    assert contents(server) == before


@pytest.mark.parametrize(("command", "code"), [*READS, *WRITES], ids=str)
def test_a_runtime_may_do_everything(
    as_user: dict[str, CommandLine], server: PasswordServer, command: list[str], code: int
) -> None:
    runtime = as_user["runtime"]
    if command == ["heartbeat", "now"]:
        runtime.start_run()
    done = runtime(*command, stdin='{"key": "greeting", "value": 1}\n')
    assert done.code == code, done.err


@pytest.mark.parametrize(("command", "code"), [*READS, *WRITES], ids=str)
def test_a_stranger_may_do_nothing_and_is_told_the_roles(
    as_user: dict[str, CommandLine], server: PasswordServer, command: list[str], code: int
) -> None:
    before = contents(server)
    done = as_user["stranger"](*command, stdin='{"key": "k", "value": 1}\n')
    refuses(done, "assistant_runtime" if (command, code) in WRITES else "assistant_reader")
    assert contents(server) == before
    assert "greeting" not in done.out


@pytest.mark.parametrize("user", ["stranger", "viewer", "runtime"])
def test_what_asks_nothing_of_the_database_needs_no_role(
    as_user: dict[str, CommandLine], user: str
) -> None:
    for command in ROLELESS:
        assert as_user[user](*command, stdin="").code == 0
    for command in EMBEDDED:
        done = as_user[user](*command)
        assert (done.code, done.out) == (78, "")


@pytest.mark.parametrize(("user", "code"), [("stranger", 77), ("viewer", 77), ("runtime", 0)])
def test_doctor_tells_what_role_is_missing(
    as_user: dict[str, CommandLine], user: str, code: int
) -> None:
    done = as_user[user]("doctor")
    assert done.code == code
    problems = [line for line in done.out.splitlines() if line.startswith("problem")]
    assert len(problems) == (code != 0)
    assert all("assistant_runtime" in line for line in problems)


@pytest.mark.parametrize(("user", "code"), [("stranger", 77), ("viewer", 77), ("runtime", 0)])
def test_a_chat_needs_the_runtime(
    as_user: dict[str, CommandLine], server: PasswordServer, user: str, code: int
) -> None:
    as_user[user].environment["TERM"] = "xterm-256color"
    before = contents(server)
    terminal = Terminal(as_user[user], "chat", more=("stdin",))
    ended = terminal.process.poll
    eventually(lambda: ended() is not None or "\x1b[6n" in terminal.text, "the prompt")
    if ended() is None:
        terminal.type("\x1b[1;1R/help\r")
        eventually(lambda: ended() is not None or "/remind" in terminal.text, "an answer")
    if ended() is None:
        terminal.type("\x04")
    assert terminal.finish() == code, terminal.text
    if code:
        assert "assistant_runtime" in terminal.errors
        assert "Traceback" not in terminal.errors
        assert contents(server) == before


def test_a_runtime_runs_the_agents(as_user: dict[str, CommandLine], server: PasswordServer) -> None:
    runtime = as_user["runtime"]
    process = runtime.start_run("--model", "command:tr a-z A-Z", "--heartbeat", "1s")
    assert runtime("send", "--wait", "hello").out == "HELLO\n"
    eventually(lambda: runtime("heartbeat", "last").code == 0, "a heartbeat")
    process.terminate()
    assert process.wait(20) == 0


def test_only_the_owner_migrates(as_user: dict[str, CommandLine], server: PasswordServer) -> None:
    with psycopg.connect(server.url(), autocommit=True) as connection:
        last = connection.execute("SELECT max(version) FROM assistant.migrations").fetchone()
        connection.execute("DELETE FROM assistant.migrations WHERE version = %s", last)
        try:
            done = as_user["runtime"]("db", "migrate")
            assert (done.code, "the owner's" in done.err) == (77, True)
            told = as_user["runtime"]("run")
            assert told.code == 77
        finally:
            connection.execute(
                "INSERT INTO assistant.migrations (version, name) VALUES (%s, 'again')", last
            )


def test_the_owner_of_a_second_database_needs_no_right_to_make_roles_that_are_there(
    server: PasswordServer, environment: dict[str, str]
) -> None:
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(f"CREATE ROLE second LOGIN PASSWORD '{PASSWORD}'".encode())
        connection.execute("CREATE DATABASE second OWNER second")
    owner = CommandLine(
        {**environment, "ASSISTANT_DATABASE_URL": server.url("second", database="second")}
    )
    assert owner("db", "migrate").code == 0
    with psycopg.connect(server.url("second", database="second"), autocommit=True) as connection:
        connection.execute(ROLES.read_bytes())
    for user, code in [("viewer", 77), ("runtime", 0)]:
        url = server.url(user, database="second")
        one = CommandLine({**environment, "ASSISTANT_DATABASE_URL": url})
        assert (one("kv", "ls").code, one("kv", "set", "k", "1").code) == (0, code)


def test_nobody_writes_as_another_sender(server: PasswordServer) -> None:
    with psycopg.connect(server.url("runtime"), autocommit=True) as connection:
        connection.execute(
            "INSERT INTO assistant.messages "
            "(id, conversation, role, content, sender, source, state) VALUES "
            "(gen_random_uuid(), 'main', 'user', 'give me the keys', 'owner', 'cli', 'said')"
        )
        connection.execute("UPDATE assistant.messages SET sender = 'owner'")
        said = "SELECT sender FROM assistant.messages WHERE content = 'give me the keys'"
        senders = connection.execute(said).fetchall()
    assert senders == [("runtime",)]


DEFINERS = """
SELECT oid::regprocedure::text FROM pg_proc
WHERE pronamespace = 'assistant'::regnamespace AND prorettype = 'trigger'::regtype
"""


def test_a_reader_writes_no_history_through_a_table_of_their_own(server: PasswordServer) -> None:
    with psycopg.connect(server.url("viewer"), autocommit=True) as connection:
        functions = [name for (name,) in connection.execute(DEFINERS).fetchall()]
        assert "assistant.record_board()" in functions
        connection.execute("CREATE TEMPORARY TABLE forged (key text, value jsonb)")
        for function in functions:
            trigger = "CREATE TRIGGER forge AFTER INSERT ON forged FOR EACH ROW EXECUTE FUNCTION "
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(f"{trigger}{function}".encode())


def test_a_stranger_who_holds_the_lock_of_migrations_holds_up_nobody(
    as_user: dict[str, CommandLine], server: PasswordServer
) -> None:
    with psycopg.connect(server.url("stranger")) as connection:
        connection.execute("SELECT pg_advisory_lock(7238114905)")
        assert as_user["runtime"]("run", "--until-idle").code == 0


def test_a_tracked_command_is_live_again_once_its_user_may_log_in_again(
    as_user: dict[str, CommandLine], server: PasswordServer
) -> None:
    tracking = as_user["runtime"].start("track", "backup", "--", "sleep", "60")
    lasts = "SELECT count(*) FROM assistant.leases WHERE expires_at > now() + interval '14 s'"
    with psycopg.connect(server.url(), autocommit=True) as connection:

        def renewed() -> bool:
            return connection.execute(lasts).fetchone() == (1,)

        wait = ("wait", "backup", "--for", "running", "--timeout", "20s")
        assert as_user["runtime"](*wait).code == 0
        connection.execute("ALTER ROLE runtime NOLOGIN")
        try:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'runtime'"
            )
            assert tracking.stderr is not None
            refused = "cannot renew the lease, trying on: the database refuses this user"
            assert any(refused in line for line in tracking.stderr)
        finally:
            connection.execute("ALTER ROLE runtime LOGIN")
        eventually(renewed, "the lease again")
        tracking.terminate()
        assert tracking.wait(20) == 143
        assert connection.execute("SELECT count(*) FROM assistant.leases").fetchone() == (0,)


def contents(server: PasswordServer) -> list[object]:
    with psycopg.connect(server.url(), autocommit=True) as connection:
        return [
            connection.execute(query).fetchall()
            for query in (
                "SELECT * FROM kv ORDER BY key",
                "SELECT * FROM assistant.messages",
                "SELECT * FROM assistant.schedules",
                "SELECT * FROM assistant.leases",
                "SELECT * FROM assistant.turns",
            )
        ]
