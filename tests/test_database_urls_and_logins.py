"""A database of one's own that is malformed, away or refuses: one line, and never a password."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from psycopg.sql import SQL, Identifier

from .conftest import CommandLine
from .password_server import PasswordServer
from .postgres_server import PASSWORD


def on(environment: dict[str, str], dsn: str) -> CommandLine:
    return CommandLine({**environment, "ASSISTANT_DATABASE_URL": dsn})


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://u:s3cret@127.0.0.1:1/x",
        "postgresql://u:s3%63ret@127.0.0.1:1/x",
        "postgresql://127.0.0.1:1/x?user=u&password=s3cret&sslpassword=s3cret",
        "host=127.0.0.1 port=1 dbname=x user=u password='two s3cret'",
        "postgresql://u@127.0.0.1:1/x?scram_client_key=s3cret&scram_server_key=s3cret",
        "postgresql://u@127.0.0.1:1/x?oauth_client_id=i&oauth_client_secret=s3cret",
    ],
)
def test_no_command_shows_a_password(environment: dict[str, str], dsn: str) -> None:
    assistant = on(environment, dsn)
    for command in ("doctor --json", "kv ls"):
        done = assistant(*command.split())
        assert done.code == 69
        assert not re.search("s3cret|s3%63ret", done.out + done.err)
    url = conninfo_to_dict(assistant("db", "url").out)
    url.pop("oauth_client_id", None)
    assert url == {"user": "u", "host": "127.0.0.1", "port": "1", "dbname": "x"}


@pytest.mark.parametrize(
    "dsn",
    [
        "postgres//u:s3cret@h",
        "postgresql://u:s3cret@[::1",
        "postgresql://u:s3cret@127.0.0.1/%zz",
        "postgresql://u:s3cret@127.0.0.1/x?nonsense=1",
        "host=127.0.0.1 password='s3cret",
        "host=127.0.0.1 pasword=s3cret",
        "postgresql://u:s3cret@127.0.0.1/x?sslmode=perhaps",
        "postgresql://u:s3cret@localhost:port/x",
        "host=127.0.0.1 port=1 password=s3cret connect_timeout=soon",
    ],
)
def test_a_malformed_dsn_is_a_wrong_configuration_and_not_repeated(
    environment: dict[str, str], dsn: str
) -> None:
    assistant = on(environment, dsn)
    doctor, send = assistant("doctor"), assistant("send", "hello")
    assert "s3cret" not in doctor.out + doctor.err + send.out + send.err
    assert (doctor.code, send.code) == (78, 78)
    assert (send.out, len(send.err.splitlines())) == ("", 1)


@pytest.mark.parametrize("command", [["kv", "get", "k"], ["db", "url"]])
def test_a_password_with_an_at_sign_that_was_not_escaped_is_not_shown(
    environment: dict[str, str], command: list[str]
) -> None:
    done = on(environment, "postgresql://u:p@s3cret@127.0.0.1:1/x")(*command)
    assert "s3cret" not in done.out + done.err


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://u:s3cret@nowhere.invalid/x",
        "host=/nowhere user=u password=s3cret",
        "host=127.0.0.1,127.0.0.1 port=1,1 user=u password=s3cret",
    ],
)
def test_a_server_that_does_not_answer_is_unreachable(
    environment: dict[str, str], dsn: str
) -> None:
    done = on(environment, dsn)("kv", "get", "k", "--default", "1")
    assert (done.code, done.out, len(done.err.splitlines())) == (69, "", 1)
    assert done.err.startswith("assistant: cannot reach the database: ")
    assert "s3cret" not in done.err


@pytest.mark.parametrize(
    ("changes", "code", "complaint"),
    [
        ({"password": "wrong-s3cret"}, 77, "refuses this user or password"),
        ({"password": ""}, 77, "refuses this user or password"),
        ({"user": "nobody"}, 77, "refuses this user or password"),
        ({"database": "nowhere"}, 78, "no such database"),
    ],
)
def test_a_refused_login_says_what_was_wrong_and_no_password(
    password_server: PasswordServer,
    environment: dict[str, str],
    changes: dict[str, str],
    code: int,
    complaint: str,
) -> None:
    url = password_server.url(**changes)
    doctor = on(environment, url)("doctor")
    assert (doctor.code, doctor.err, complaint in doctor.out) == (code, "", True)
    words = [f"{name}='{value}'" for name, value in conninfo_to_dict(url).items()]
    status = on(environment, " ".join(words))("status")
    assert (status.code, status.out, len(status.err.splitlines())) == (code, "", 1)
    assert complaint in status.err
    assert "s3cret" not in doctor.out + status.err


def test_a_password_opens_the_database_and_is_never_shown(
    password_server: PasswordServer, environment: dict[str, str]
) -> None:
    assistant = on(environment, password_server.url())
    assert assistant("kv", "set", "k", "1").code == 0
    for command in ("db status", "db status --json", "doctor --json"):
        done = assistant(*command.split())
        assert done.code == 0
        assert f"{password_server.port}" in done.out
        assert "s3cret" not in done.out + done.err
    shell = assistant("db", "shell", stdin="SELECT 'I am ' || current_user;\n")
    assert (shell.code, "I am owner" in shell.out) == (0, True)


def test_the_password_of_the_shell_stays_out_of_the_process_list(
    password_server: PasswordServer, environment: dict[str, str], tmp_path: Path
) -> None:
    psql = tmp_path / "psql"
    psql.write_text('#!/bin/sh\nprintf "%s\\n" "$PGPASSWORD" "$@"\nexit 7\n')
    psql.chmod(0o755)
    assistant = on(environment, password_server.url())
    assistant.environment["PATH"] = f"{tmp_path}:{environment['PATH']}"
    done = assistant("db", "shell")
    password, dsn = done.out.splitlines()
    assert (done.code, password) == (7, PASSWORD)
    shown = password_server.url().replace(f":{PASSWORD}", "")
    assert conninfo_to_dict(dsn) == conninfo_to_dict(shown)


def test_a_shell_on_a_server_that_does_not_answer_is_unreachable(
    environment: dict[str, str],
) -> None:
    done = on(environment, "host=127.0.0.1 port=1")("db", "shell")
    assert (done.code, done.out, len(done.err.splitlines())) == (69, "", 1)


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("kv get missing --default 1", 0),
        ("status --json", 0),
        ("kv set k 1", 77),
        ("report backup idle", 77),
        ("send hello", 77),
        ("track backup -- echo ran", 77),
    ],
)
def test_who_may_only_read_can_read_and_is_refused_the_rest(
    password_server: PasswordServer, environment: dict[str, str], command: str, code: int
) -> None:
    done = on(environment, password_server.url("viewer"))(*command.split())
    assert (done.code, done.out == "") == (code, code != 0)
    if code:
        assert len(done.err.splitlines()) == 1
        assert done.err.startswith("assistant: the database does not permit this: ")


@pytest.mark.parametrize(
    ("command", "database"),
    [("kv get k", "app"), ("doctor", "app"), ("db migrate", "postgres")],
)
def test_who_may_nothing_is_refused(
    password_server: PasswordServer, environment: dict[str, str], command: str, database: str
) -> None:
    dsn = password_server.url("stranger", database=database)
    done = on(environment, dsn)(*command.split())
    assert done.code == 77
    assert "the database does not permit this: permission denied" in done.out + done.err


@pytest.mark.parametrize("style", ["German", "SQL, DMY"])
def test_a_database_that_writes_its_dates_otherwise_is_read_all_the_same(
    kept: CommandLine, sql: psycopg.Connection[Any], style: str
) -> None:
    sql.execute(
        SQL("ALTER DATABASE {} SET datestyle = {}").format(Identifier(sql.info.dbname), style)
    )
    assert kept("report", "backup", "idle").code == 0
    assert kept("send", "hello").code == 0
    for command in (["kv", "get", "status_board"], ["status"], ["turns", "ls"], ["history"]):
        done = kept(*command)
        assert (done.code, done.err) == (0, "")
        assert done.out
