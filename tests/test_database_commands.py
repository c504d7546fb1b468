"""`assistant db`: the embedded server from start to stop, and a database of one's own."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from assistant_cli.embedded_postgres import EmbeddedPostgres
from assistant_cli.store.migrations import LATEST_VERSION

from .conftest import CommandLine, Finished, eventually
from .test_database_urls_and_logins import on
from .test_doctor_command import checks


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


def rows(done: Finished) -> dict[str, str]:
    """The first two cells of each line."""
    return dict(line.split("\t")[:2] for line in done.out.splitlines())


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


def test_a_home_may_have_an_at_sign_as_that_of_a_domain_user(
    private_home: Path, environment: dict[str, str]
) -> None:
    home = private_home / "someone@example.org"
    assistant = CommandLine({**environment, "ASSISTANT_HOME": str(home)})
    try:
        assert assistant("kv", "set", "a", "1").code == 0
        assert assistant("kv", "get", "a").out == "1\n"
        assert assistant("doctor").code == 0
    finally:
        asyncio.run(EmbeddedPostgres(home).stop())


def test_the_shell_needs_no_psql_of_the_system(assistant: CommandLine, tmp_path: Path) -> None:
    assistant.environment["PATH"] = str(tmp_path)
    done = assistant("db", "shell", stdin="SELECT 6 * 7;\n")
    assert (done.code, "42" in done.out, done.err) == (0, True, "")


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


def test_data_of_another_major_version_are_told_before_a_command_meets_them(
    stopped: CommandLine, server_home: Path
) -> None:
    version = EmbeddedPostgres(server_home).data_folder / "PG_VERSION"
    version.write_text("16\n")
    try:
        for command in (["doctor"], ["db", "status"], ["kv", "get", "a"]):
            done = stopped(*command)
            assert done.code == 78, command
            assert "was made by PostgreSQL 16 and this is 18" in done.out + done.err
    finally:
        version.write_text("18\n")
    assert stopped("doctor").code == 0


def test_a_dump_as_the_documentation_has_it_moves_everything(
    dsn: str, empty_dsn: str, environment: dict[str, str], tmp_path: Path
) -> None:
    page = Path(__file__).parent.parent / "docs" / "deployment.md"
    block = next(text for text in page.read_text().split("```") if "programs/pg_dump" in text)
    _, *before, dump, restore = block.splitlines()
    assistant = on(environment, dsn)
    assert assistant("kv", "set", "greeting", "1.10").code == 0
    assert assistant("send", "hello").code == 0
    assert assistant("run", "--until-idle").code == 0
    assert assistant("send", "again").code == 0
    for url, line in [(dsn, dump), (empty_dsn, restore), (empty_dsn, restore)]:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        changed = {**environment, "PATH": path, "ASSISTANT_DATABASE_URL": url}
        script = "\n".join(["set -eu", *before, line])
        subprocess.run(["sh", "-c", script], cwd=tmp_path, env=changed, check=True)
    assert (tmp_path / "assistant.sql").stat().st_mode & 0o077 == 0
    moved = on(environment, empty_dsn)
    assert moved("doctor").code == 0
    for looked_at in (["kv", "export"], ["history"], ["turns", "ls"], ["status", "--history"]):
        assert moved(*looked_at).out == assistant(*looked_at).out
    assert moved("run", "--until-idle").code == 0
    assert [line.split("\t")[3] for line in moved("history").out.splitlines()] == [
        *("answered", "said") * 2
    ]
