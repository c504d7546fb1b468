"""`assistant doctor`: what is configured, reachable and set up, and what to do where it is not."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from assistant_cli.store.migrations import LATEST_VERSION

from .accounts import only_root
from .conftest import CommandLine, Finished, eventually
from .password_server import PasswordServer
from .postgres_server import free_port
from .test_database_urls_and_logins import on


def checks(done: Finished) -> dict[str, dict[str, Any]]:
    """The document of `doctor --json`."""
    document = json.loads(done.out)
    assert document["schema"] == 1
    return {check["check"]: check for check in document["checks"]}


def test_the_facts_about_a_database_of_ones_own(assistant: CommandLine, dsn: str) -> None:
    document = json.loads(assistant("db", "status", "--json").out)
    assert document == {
        "schema": 1,
        "source": "ASSISTANT_DATABASE_URL",
        "url": document["url"],
        "reachable": True,
        "server": document["server"],
        "schema_version": LATEST_VERSION,
        "programs": document["programs"],
    }
    assert Path(document["programs"], "pg_dump").is_file()
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


@pytest.mark.parametrize("url", ["http://[::1", "http://s3cret@host:port/v1", "localhost:8080/v1"])
def test_the_doctor_reports_a_base_url_that_is_none(assistant: CommandLine, url: str) -> None:
    assistant.environment |= {"ASSISTANT_MODEL": "openai:gpt-5", "ASSISTANT_BASE_URL": url}
    done = assistant("doctor", "--json")
    assert (done.code, done.err, "s3cret" in done.out) == (78, "", False)
    assert "the base URL is malformed" in checks(done)["model"]["problem"]


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


def test_the_doctor_of_a_server_that_is_down_does_not_send_one_to_the_doctor(
    environment: dict[str, str],
) -> None:
    assistant = on(environment, f"postgresql://127.0.0.1:{free_port()}/app")
    assert "; `assistant doctor` tells more" in assistant("status").err
    doctor = assistant("doctor", "--json")
    assert (doctor.code, doctor.err) == (69, "")
    problem = checks(doctor)["server"]["problem"]
    assert problem.endswith("refused; see that the server is up and the address right")


def test_the_doctor_reports_triggers_that_are_missing(assistant: CommandLine, dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("DROP TRIGGER assistant_stamp ON kv")
    done = assistant("doctor", "--json")
    assert checks(done)["kv triggers"]["ok"] is False
    assert "assistant_stamp" in checks(done)["kv triggers"]["problem"]
    assert done.code == 78


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


def test_the_doctor_finds_that_a_database_does_not_hold_all_text(
    ascii_dsn: str, environment: dict[str, str]
) -> None:
    done = on(environment, ascii_dsn)("doctor", "--json")
    assert (done.code, checks(done)["encoding"]["result"]) == (78, "SQL_ASCII")
    assert "ENCODING 'UTF8'" in checks(done)["encoding"]["problem"]


def test_the_doctor_finds_that_a_user_may_only_read(
    password_server: PasswordServer, environment: dict[str, str]
) -> None:
    done = on(environment, password_server.url("viewer"))("doctor", "--json")
    assert (done.code, checks(done)["writing"]["ok"]) == (77, False)


@only_root
def test_the_doctor_finds_that_the_server_of_root_cannot_come_to_its_files(
    private_home: Path, environment: dict[str, str]
) -> None:
    assistant = CommandLine({**environment, "ASSISTANT_HOME": str(private_home)})
    assert assistant("kv", "set", "a", "1").code == 0
    private_home.chmod(0o700)
    for command in (["doctor"], ["db", "stop"], ["doctor"], ["kv", "get", "a"]):
        done = assistant(*command)
        if command != ["db", "stop"]:
            assert done.code == 77
            assert f"cannot pass {private_home}; chmod o+x {private_home}" in done.out + done.err
    private_home.chmod(0o711)
    assert assistant("doctor").code == 0
    assert assistant("kv", "get", "a").out == "1\n"
