"""A disk that is really full: commands say so, `run` stays up, and nothing acknowledged is lost."""

from __future__ import annotations

import random
import string
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import psycopg
import pytest

from assistant_cli.server_account import initdb_account

from .conftest import CommandLine, eventually
from .password_server import set_up
from .postgres_server import PostgresServer, server_folder
from .small_disk import SmallDisk, needs_small_disk, small_disk
from .test_server_limits import check_at_work, start_run

pytestmark = needs_small_disk

MEGABYTES = 90
SMALL_WAL = {"min_wal_size": "2MB", "max_wal_size": "8MB"}
MUCH_WAL = "SELECT pg_logical_emit_message(false, '', repeat('x', 100000))"
UNANSWERED = "SELECT FROM assistant.messages WHERE state IN ('waiting', 'working')"
REPLIES = "SELECT content FROM assistant.messages WHERE source = 'conversation'"


@dataclass
class Machine:
    """A server, and the disk that its data lie on."""

    server: PostgresServer
    disk: SmallDisk
    assistant: CommandLine
    owner_url: str
    wal_has_room: bool

    def use_up_wal(self) -> None:
        """Write WAL until there is no room for more; the server panics."""
        with psycopg.connect(self.owner_url, autocommit=True) as connection:
            while not connection.closed:
                with suppress(psycopg.OperationalError):
                    connection.execute(MUCH_WAL)

    def is_up(self) -> bool:
        """Whether the server answers; one that has given up is started, as a supervisor does."""
        if self.server.has_ended():
            self.server.start(**SMALL_WAL)
        return self.assistant("kv", "get", "first").code == 0


@pytest.fixture(params=[False, True], ids=["data", "data and WAL"])
def machine(request: pytest.FixtureRequest, environment: dict[str, str]) -> Iterator[Machine]:
    """Its WAL lies on the same disk, or on one that has room."""
    with server_folder() as folder:
        (folder / "wal").mkdir(mode=0o700)
        initdb_account().take(folder / "wal")
        with small_disk(folder / "disk", MEGABYTES) as disk:
            server = PostgresServer(folder, "disk/data")
            server.create("--wal-segsize=1", *([] if request.param else [f"--waldir={folder}/wal"]))
            try:
                server.start(**SMALL_WAL)
                known = set_up(server)
                url = known.url("runtime")
                assistant = CommandLine({**environment, "ASSISTANT_DATABASE_URL": url})
                yield Machine(server, disk, assistant, known.url(), not request.param)
                assistant.end_all()
            finally:
                server.stop()


def write_until_refused(assistant: CommandLine) -> tuple[dict[str, str], str]:
    """Write large values, then send messages; what was acknowledged, and how it was refused."""
    choices = random.Random(1)
    kept: dict[str, str] = {}
    while True:
        key = f"k{len(kept)}"
        text = "".join(choices.choices(string.ascii_letters + string.digits, k=100_000))
        done = assistant("kv", "set", "--string", key, text)
        if done.code:
            break
        kept[key] = text
    assert (done.code, done.out, len(done.err.splitlines())) == (69, "", 1), done.err
    return kept, done.err


def send_until_refused(assistant: CommandLine) -> list[str]:
    """Send messages; the texts of those that were acknowledged, and then of one that was not."""
    sent: list[str] = []
    while True:
        text = f"{len(sent)} {'x' * 5000}"
        done = assistant("send", text)
        if done.code:
            assert (done.code, done.out, len(done.err.splitlines())) == (69, "", 1), done.err
            return [*sent, text]
        sent.append(text)


@pytest.mark.timeout(240)
def test_what_a_full_disk_refuses_is_told_and_what_was_acknowledged_is_kept(
    machine: Machine,
) -> None:
    assistant = machine.assistant
    run = start_run(assistant)
    assert assistant("send", "--wait", "before").out == "BEFORE\n"
    assert assistant("kv", "set", "first", "1").code == 0
    machine.disk.fill(leave=1_000_000)
    kept, told = write_until_refused(assistant)
    *sent, unknown = send_until_refused(assistant)
    assert run.process.poll() is None
    if machine.wal_has_room:
        assert "No space left on device (SQLSTATE 53100)" in told
    else:
        machine.use_up_wal()
        assert assistant("kv", "set", "first", "2").code == 69
        assert run.process.poll() is None
    machine.disk.free()
    eventually(machine.is_up, "the server")
    for key, text in kept.items():
        assert assistant("kv", "get", "-r", key).out == f"{text}\n"
    check_answers(machine, ["before", *sent], unknown)
    check_at_work(assistant, run)


def check_answers(machine: Machine, sent: list[str], unknown: str) -> None:
    """Each message was answered once, and none is left; one may be kept or not."""
    with psycopg.connect(machine.owner_url, autocommit=True) as connection:
        eventually(lambda: not connection.execute(UNANSWERED).rowcount, "the answers")
        replies = [row[0] for row in connection.execute(REPLIES).fetchall()]
    lines = Counter(line for reply in replies for line in reply.splitlines())
    assert lines - Counter([unknown.upper()]) == Counter(text.upper() for text in sent)
