"""`assistant db` and `doctor`: what is configured and reachable, and never a password."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from assistant_cli.embedded_postgres import EmbeddedPostgres
from assistant_cli.store.migrations import LATEST_VERSION

from .conftest import CommandLine, Finished, eventually
from .password_server import PasswordServer
from .postgres_server import PASSWORD


@pytest.fixture
def stopped(server_home: Path, environment: dict[str, str]) -> Iterator[CommandLine]:
    """The command line on the embedded server of this worker, which does not run yet."""
    server = EmbeddedPostgres(server_home)
    asyncio.run(server.stop())
    command_line = CommandLine({**environment, "ASSISTANT_HOME": str(server_home)})
    yield command_line
    command_line.end_all()
    asyncio.run(server.start(lambda _: None))


@pytest.fixture
def nowhere(environment: dict[str, str]) -> CommandLine:
    """The command line in a home that does not exist."""
    assert not Path(environment["ASSISTANT_HOME"]).exists()
    return CommandLine(environment)


def on(environment: dict[str, str], dsn: str) -> CommandLine:
    return CommandLine({**environment, "ASSISTANT_DATABASE_URL": dsn})


def rows(done: Finished) -> dict[str, str]:
    """The first two cells of each line."""
    return dict(line.split("\t")[:2] for line in done.out.splitlines())


def checks(done: Finished) -> dict[str, dict[str, Any]]:
    """The document of `doctor --json`."""
    document = json.loads(done.out)
    assert document["schema"] == 1
    return {check["check"]: check for check in document["checks"]}


def test_without_a_server_the_commands_that_look_start_and_make_nothing(
    nowhere: CommandLine,
) -> None:
    home = Path(nowhere.environment["ASSISTANT_HOME"])
    status = nowhere("db", "status")
    assert (status.code, len(status.err.splitlines())) == (69, 1)
    assert "the embedded Postgres is not running" in status.err
    assert rows(status).items() >= {"source": "embedded", "reachable": "no"}.items()

    document = json.loads(nowhere("db", "status", "--json").out)
    assert (document["schema"], document["source"], document["reachable"]) == (
        1,
        "embedded",
        False,
    )
    doctor = nowhere("doctor", "--json")
    assert (doctor.code, doctor.err) == (0, "")
    assert checks(doctor)["home"] == {
        "check": "home",
        "ok": True,
        "result": str(home),
        "problem": None,
    }
    assert "the next command that needs it starts it" in checks(doctor)["server"]["result"]

    url = nowhere("db", "url")
    assert (url.code, url.err, url.out.count("\n")) == (0, "", 1)
    stop = nowhere("db", "stop")
    assert (stop.code, stop.out, stop.err) == (
        3,
        "",
        "assistant: the embedded Postgres was not running\n",
    )
    assert not home.exists()


@pytest.mark.parametrize("command", [["kv", "ls"], ["db", "start"]])
def test_a_command_that_needs_the_server_starts_it_and_says_so_once(
    stopped: CommandLine, command: list[str]
) -> None:
    folder = Path(stopped.environment["ASSISTANT_HOME"]) / "postgres"
    first = stopped(*command)
    *slowly, said = first.err.splitlines()
    assert all("still starting" in line for line in slowly)
    assert first.code == 0
    assert said == (
        f"assistant: started the embedded Postgres in {folder.resolve()}; "
        "it stays up until `assistant db stop`"
    )
    second = stopped(*command)
    assert (second.code, second.err) == (0, "")


def test_of_commands_that_need_it_at_once_one_starts_it_and_says_so(stopped: CommandLine) -> None:
    commands = [stopped.start("kv", "ls") for _ in range(4)]
    said = "".join(command.communicate(timeout=60)[1] for command in commands)
    assert [command.returncode for command in commands] == [0] * 4
    assert said.count("started the embedded Postgres") == 1


def test_the_embedded_server_from_start_to_stop(stopped: CommandLine) -> None:
    stopped("db", "start")
    url = stopped("db", "url").out.strip()
    with psycopg.connect(url) as connection:
        assert connection.info.dbname == "assistant"

    status = stopped("db", "status")
    assert (status.code, status.err) == (0, "")
    expected = {"reachable": "yes", "url": url, "schema_version": str(LATEST_VERSION)}
    assert rows(status).items() >= expected.items()

    doctor = stopped("doctor")
    assert (doctor.code, doctor.err) == (0, "")
    assert {line.split("\t")[0] for line in doctor.out.splitlines()} == {"ok"}

    migrated = stopped("db", "migrate")
    assert (migrated.code, migrated.out) == (0, "")
    assert migrated.err == f"assistant: the database is at version {LATEST_VERSION}\n"

    stop = stopped("db", "stop")
    assert (stop.code, stop.out, stop.err) == (0, "", "")
    assert stopped("db", "stop").code == 3
    assert stopped("db", "status").code == 69


def test_the_shell_starts_the_server_and_asks_it(stopped: CommandLine) -> None:
    done = stopped("db", "shell", stdin="SELECT 'in ' || current_database();\n")
    assert done.code == 0
    assert "in assistant" in done.out


def test_a_track_outlives_a_restart_of_the_server(stopped: CommandLine) -> None:
    track = stopped.start("track", "backup", "--", "cat", stdin=subprocess.PIPE)
    eventually(lambda: "cat" in stopped("status", "backup").out, "running")
    stopped("db", "stop")
    assert track.poll() is None
    stopped("db", "start")
    assert track.communicate(timeout=30)[0] == ""
    assert track.returncode == 0
    assert stopped("status", "backup").out.split("\t")[1] == "idle"


@pytest.mark.parametrize("verb", ["start", "stop"])
def test_a_database_of_ones_own_is_neither_started_nor_stopped(
    environment: dict[str, str], verb: str
) -> None:
    done = on(environment, "host=127.0.0.1 port=1 password=s3cret")("db", verb)
    assert (done.code, done.out, len(done.err.splitlines())) == (78, "", 1)
    assert "ASSISTANT_DATABASE_URL names a database of your own" in done.err
    assert "s3cret" not in done.err
    assert not Path(environment["ASSISTANT_HOME"]).exists()


def test_the_facts_about_a_database_of_ones_own(assistant: CommandLine, dsn: str) -> None:
    document = json.loads(assistant("db", "status", "--json").out)
    assert document == {
        "schema": 1,
        "source": "ASSISTANT_DATABASE_URL",
        "url": document["url"],
        "reachable": True,
        "server": document["server"],
        "schema_version": LATEST_VERSION,
    }
    assert conninfo_to_dict(document["url"]) == conninfo_to_dict(dsn)
    assert document["server"].startswith("18")

    doctor = assistant("doctor", "--json")
    assert (doctor.code, doctor.err, doctor.out.count("\n")) == (0, "", 1)
    assert all(check["ok"] and check["problem"] is None for check in checks(doctor).values())
    assert checks(doctor)["notifications"]["result"] == "arrive"


def test_the_doctor_names_who_holds_an_agent_and_that_it_is_gone(assistant: CommandLine) -> None:
    track = assistant.start("track", "backup", "--", "cat", stdin=subprocess.PIPE)

    def holder() -> str:
        return rows_of_checks(assistant("doctor")).get("holder of backup", "")

    eventually(holder, "the holder")
    assert holder().startswith("live: host ")
    assert f"pid {track.pid}, since" in holder()
    track.kill()
    track.wait()
    assert holder().startswith("stale: host ")


def rows_of_checks(done: Finished) -> dict[str, str]:
    """What `doctor` found, a check."""
    cells = [line.split("\t") for line in done.out.splitlines()]
    return {row[1]: row[2] for row in cells}


def test_the_doctor_reports_a_model_that_is_none(assistant: CommandLine) -> None:
    assistant.environment["ASSISTANT_MODEL"] = "gpt"
    done = assistant("doctor", "--json")
    assert (done.code, done.err) == (78, "")
    assert "there is no model 'gpt'" in checks(done)["model"]["problem"]
    assert checks(done)["schema"]["ok"] is True


def test_a_database_that_is_not_set_up_is_left_alone_and_the_way_is_told(
    empty_dsn: str, environment: dict[str, str]
) -> None:
    assistant = on(environment, empty_dsn)
    doctor = assistant("doctor")
    assert (doctor.code, doctor.err) == (78, "")
    assert doctor.out.splitlines()[-1].startswith("problem\tschema\tversion 0 of ")
    assert "run `assistant db migrate`" in doctor.out
    status = assistant("db", "status", "--json")
    assert status.code == 78
    assert "run `assistant db migrate`" in status.err
    assert json.loads(status.out).items() >= {"reachable": True, "schema_version": 0}.items()
    with psycopg.connect(empty_dsn) as connection:
        assert connection.execute("SELECT to_regnamespace('assistant')").fetchone() == (None,)


def test_the_doctor_reports_triggers_that_are_missing(assistant: CommandLine, dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("DROP TRIGGER assistant_stamp ON kv")
    done = assistant("doctor", "--json")
    assert checks(done)["kv triggers"]["ok"] is False
    assert "assistant_stamp" in checks(done)["kv triggers"]["problem"]
    assert done.code == 78


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://u:s3cret@127.0.0.1:1/x",
        "postgresql://u:s3%63ret@127.0.0.1:1/x",
        "postgresql://127.0.0.1:1/x?user=u&password=s3cret&sslpassword=s3cret",
        "host=127.0.0.1 port=1 dbname=x user=u password='two s3cret'",
    ],
)
def test_no_command_shows_a_password(environment: dict[str, str], dsn: str) -> None:
    assistant = on(environment, dsn)
    for command in ("doctor --json", "kv ls"):
        done = assistant(*command.split())
        assert done.code == 69
        assert not re.search("s3cret|s3%63ret", done.out + done.err)
    url = conninfo_to_dict(assistant("db", "url").out)
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


def test_the_shell_needs_no_psql_of_the_system(assistant: CommandLine, tmp_path: Path) -> None:
    assistant.environment["PATH"] = str(tmp_path)
    done = assistant("db", "shell", stdin="SELECT 6 * 7;\n")
    assert (done.code, "42" in done.out, done.err) == (0, True, "")


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


def test_a_stop_is_not_undone_by_those_who_watch(
    private_home: Path, environment: dict[str, str]
) -> None:
    assistant = CommandLine({**environment, "ASSISTANT_HOME": str(private_home)})
    assert assistant("report", "backup", "idle").code == 0
    watches = [assistant.start("status", "--watch") for _ in range(4)]
    try:
        for watch in watches:
            assert watch.stdout is not None
            assert watch.stdout.readline()
        assert assistant("db", "stop").code == 0
        for watch in watches:
            assert watch.stderr is not None
            assert "lost the database" in watch.stderr.readline()
        # Each tries again a few times meanwhile.
        with pytest.raises(subprocess.TimeoutExpired):
            watches[0].wait(timeout=2)
        assert assistant("db", "status").code == 69
    finally:
        assistant.end_all()


@pytest.mark.parametrize(
    ("setting", "check"),
    [
        ("ASSISTANT_HEARTBEAT", "heartbeat"),
        ("ASSISTANT_HEARTBEAT_HOURS", "heartbeat hours"),
        ("ASSISTANT_HEARTBEAT_TOKENS", "heartbeat tokens"),
        ("ASSISTANT_TURN_TIMEOUT", "turn timeout"),
    ],
)
def test_the_doctor_finds_a_setting_with_which_no_run_starts(
    assistant: CommandLine, setting: str, check: str
) -> None:
    assistant.environment[setting] = "soon"
    done = assistant("doctor", "--json")
    assert done.code == 78
    assert "'soon'" in checks(done)[check]["problem"]
    assert "write" in checks(done)[check]["problem"]
    assert assistant("run", "--until-idle").code == 78


def test_the_doctor_finds_that_a_user_may_only_read(
    password_server: PasswordServer, environment: dict[str, str]
) -> None:
    done = on(environment, password_server.url("viewer"))("doctor", "--json")
    assert (done.code, checks(done)["writing"]["ok"]) == (77, False)
