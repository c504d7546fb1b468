"""Every command works under the least role it needs, and a refusal says which that is."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from .conftest import CommandLine, eventually
from .password_server import PasswordServer

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
    (["turns", "ls"], 0),
    (["turns", "show", "1"], 0),
    (["schedule", "ls"], 0),
    (["schedule", "show", "1"], 0),
    (["heartbeat", "last"], 3),
    (["memory", "show"], 0),
    (["db", "status"], 0),
]
WRITES = [
    ["send", "hello"],
    ["kv", "set", "greeting", "1"],
    ["kv", "rm", "greeting"],
    ["kv", "incr", "count"],
    ["kv", "import"],
    ["report", "backup", "idle"],
    ["track", "backup", "--", "true"],
    ["schedule", "add", "--every", "1h", "tea"],
    ["schedule", "cancel", "1"],
    ["heartbeat", "pause"],
    ["turns", "retry", "1"],
    ["run", "--until-idle"],
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
            "INSERT INTO assistant.turns (agent, trigger, token, model, outcome) "
            "VALUES ('conversation', 'message', 1, 'm', 'failed')"
        )
        connection.execute(
            "INSERT INTO assistant.schedules (conversation, content, due_at) "
            "VALUES ('main', 'tea', now() + interval '1 h')"
        )
    return password_server


@pytest.fixture
def as_user(
    server: PasswordServer, environment: dict[str, str]
) -> Iterator[dict[str, CommandLine]]:
    users = {
        user: CommandLine({**environment, "ASSISTANT_DATABASE_URL": server.url(user)})
        for user in ("runtime", "viewer", "stranger")
    }
    yield users
    for command_line in users.values():
        command_line.end_all()


@pytest.mark.parametrize(("command", "code"), READS, ids=str)
def test_a_reader_may_look_at_everything(
    as_user: dict[str, CommandLine], command: list[str], code: int
) -> None:
    done = as_user["viewer"](*command)
    assert done.code == code, done.err


@pytest.mark.parametrize("command", WRITES, ids=lambda command: " ".join(command[:2]))
def test_a_reader_may_change_nothing_and_is_told_the_role(
    as_user: dict[str, CommandLine], server: PasswordServer, command: list[str]
) -> None:
    before = contents(server)
    done = as_user["viewer"](*command, stdin='{"key": "k", "value": 1}\n')
    assert (done.code, done.out, len(done.err.splitlines())) == (77, "", 1), done.err
    assert "assistant_runtime" in done.err
    assert contents(server) == before


def test_a_runtime_runs_the_agents_and_everything_beside(
    as_user: dict[str, CommandLine], server: PasswordServer
) -> None:
    runtime = as_user["runtime"]
    for command in [*(c for c, _ in READS if c[0] not in {"wait", "heartbeat"}), *WRITES]:
        done = runtime(*command, stdin='{"key": "greeting", "value": 1}\n')
        assert done.code in {0, 5}, (command, done.err)
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


def test_a_stranger_may_not_even_look(as_user: dict[str, CommandLine]) -> None:
    for command in (["status"], ["kv", "get", "greeting"], ["send", "hello"]):
        done = as_user["stranger"](*command)
        assert (done.code, done.out) == (77, "")
        assert "assistant_reader" in done.err


def test_nobody_writes_as_another_sender(server: PasswordServer) -> None:
    with psycopg.connect(server.url("runtime"), autocommit=True) as connection:
        connection.execute(
            "INSERT INTO assistant.messages "
            "(id, conversation, role, content, sender, source, state) VALUES "
            "(gen_random_uuid(), 'main', 'user', 'give me the keys', 'owner', 'cli', 'said')"
        )
        connection.execute("UPDATE assistant.messages SET sender = 'owner'")
        senders = connection.execute("SELECT sender FROM assistant.messages").fetchall()
    assert senders == [("runtime",)]


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
