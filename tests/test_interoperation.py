"""Other programs with plain SQL, on servers that are not ours, set up by `infra/init.sql` alone.

`.ci/run` brings the servers and the other program; without them these tests are skipped.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from assistant_cli.server_account import bundled_programs, initdb_account

from .conftest import CommandLine, eventually

INIT_SQL = Path(__file__).parent.parent / "infra" / "init.sql"
STRANGER = Path(__file__).parent / "stranger.js"
BINS = [
    Path(name) for name in os.environ.get("ASSISTANT_TEST_POSTGRES_BINS", "").split(":") if name
]
NODE_PG = os.environ.get("ASSISTANT_TEST_NODE_PG")
PORT = "5432"

pytestmark = pytest.mark.skipif(not (BINS and NODE_PG), reason="needs other servers and node-pg")


@dataclass(frozen=True)
class Server:
    """An ordinary server on a socket, with a superuser `postgres`."""

    socket: Path

    def dsn(self, database: str = "postgres") -> str:
        return make_conninfo(host=str(self.socket), port=PORT, user="postgres", dbname=database)


@pytest.fixture(scope="module", params=BINS, ids=lambda bin_folder: bin_folder.parts[-3])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    folder = Path(tempfile.mkdtemp(prefix="other-", dir="/tmp"))
    account = initdb_account()
    account.take(folder)

    def start(program: str, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [request.param / program, "-D", folder / "data", *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            **account.switch(),
        )

    assert start("initdb", "-A", "trust", "-U", "postgres", "-E", "UTF8", "-N").wait() == 0
    options = ["-k", str(folder), "-p", PORT, "-c", "listen_addresses=", "-c", "fsync=off"]
    postgres = start("postgres", *options)
    try:
        found = Server(folder)
        eventually(lambda: answers(found), "the server")
        yield found
    finally:
        postgres.terminate()
        postgres.wait()
        shutil.rmtree(folder)


def answers(server: Server) -> bool:
    try:
        psycopg.connect(server.dsn()).close()
    except psycopg.OperationalError:
        return False
    return True


@pytest.fixture
def database(server: Server, request: pytest.FixtureRequest) -> str:
    """The name of a database that `psql -f infra/init.sql` has set up."""
    name = f"t{abs(hash(request.node.name))}"
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
    psql = [str(bundled_programs() / "psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1"]
    command = [*psql, "-f", str(INIT_SQL), server.dsn(name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return name


@pytest.fixture
def assistant(server: Server, database: str, environment: dict[str, str]) -> Iterator[CommandLine]:
    command_line = CommandLine({**environment, "ASSISTANT_DATABASE_URL": server.dsn(database)})
    yield command_line
    command_line.end_all()


Stranger = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def stranger(server: Server, database: str) -> Iterator[Stranger]:
    started: list[subprocess.Popen[str]] = []
    where = ",".join([str(server.socket), PORT, database, "postgres"])

    def start(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            ["node", STRANGER, where, *arguments],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "NODE_PATH": f"{NODE_PG}/node_modules"},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with process:
            process.kill()


def upsert(stranger: Stranger, key: str, value: str) -> None:
    assert stranger("upsert", key, value).wait() == 0


def test_what_one_writes_the_other_reads_digit_for_digit(
    assistant: CommandLine, stranger: Stranger
) -> None:
    upsert(stranger, "theirs", '{"n": 12345678901234567890.10, "s": "größer"}')
    assert assistant("kv", "get", "theirs").out == '{"n": 12345678901234567890.10, "s": "größer"}\n'
    first = json.loads(assistant("kv", "get", "theirs", "--json").out)["revision"]
    upsert(stranger, "theirs", "2")
    assert json.loads(assistant("kv", "get", "theirs", "--json").out)["revision"] > first
    assert assistant("kv", "set", "theirs", "3", "--if-revision", str(first)).code == 5

    assistant("kv", "set", "ours", "[1.50, null]")
    assert stranger("read", "ours").communicate()[0] == "[1.50, null]\n"


def test_each_sees_the_others_changes_at_once(assistant: CommandLine, stranger: Stranger) -> None:
    upsert(stranger, "k", "1")
    ours = assistant.start("kv", "watch", "k")
    theirs = stranger("follow", "k")
    assert ours.stdout is not None
    assert theirs.stdout is not None
    assert (ours.stdout.readline(), theirs.stdout.readline()) == ("1\n", "1\n")
    upsert(stranger, "k", "2")
    assert (ours.stdout.readline(), theirs.stdout.readline()) == ("2\n", "2\n")
    assistant("kv", "set", "k", "3")
    assert (ours.stdout.readline(), theirs.stdout.readline()) == ("3\n", "3\n")


def test_the_board_is_exactly_the_object_that_others_rely_on(
    assistant: CommandLine, stranger: Stranger
) -> None:
    assistant.start_run("--model", "command:tr a-z A-Z")
    assert assistant("send", "--wait", "hello").out == "HELLO\n"
    idle = {"status": "idle", "detail": None}

    def read() -> object:
        return json.loads(stranger("read", "status_board").communicate()[0])

    eventually(lambda: read() == {"conversation": idle, "heartbeat": idle}, "both idle")
    board = {"conversation": idle, "heartbeat": idle, "theirs": {**idle, "status": "failed"}}
    upsert(stranger, "status_board", json.dumps(board))
    assert assistant("status", "theirs").out.split("\t")[1] == "failed"
    assistant("report", "theirs", "running", "again")
    assert read() == {**board, "theirs": {"status": "running", "detail": "again"}}
