"""Servers of a test's own on loopback, made of the programs of the wheel."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import psycopg

from assistant_cli import server_account

from .conftest import eventually

OWNER = "owner"
PASSWORD = "right-s3cret"
_SETTINGS = {"unix_socket_directories": "", "fsync": "off"}


class PostgresServer:
    """A server that asks everybody for a password; `folder` holds its data and its programs.

    `environment`: what it is started with besides; `port`: a free one, unless given.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        environment: Mapping[str, str] | None = None,
        port: int | None = None,
    ) -> None:
        self.port = port or free_port()
        self._folder = folder
        self._data = folder / name
        self._account = server_account.initdb_account()
        self._programs = server_account.server_programs(folder)
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def admin_dsn(self) -> str:
        """Connects the owner to the server's own database."""
        return f"postgresql://{OWNER}:{PASSWORD}@127.0.0.1:{self.port}/postgres"

    def create(self, *choices: str) -> None:
        """Make the data of a new server, with further options of `initdb`."""
        secret = self._folder / "password"
        secret.write_text(PASSWORD)
        self._data.mkdir(mode=0o700)
        for path in (self._data, secret):
            self._account.take(path)
        options = [f"--pgdata={self._data}", f"--username={OWNER}", f"--pwfile={secret}"]
        options += ["--no-sync", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"]
        options += choices
        subprocess.run(
            [str(self._programs / "initdb"), *options],
            check=True,
            capture_output=True,
            cwd="/",
            **self._account.switch(),
        )

    def copy(self, primary: PostgresServer, name: str) -> None:
        """Make the data of a standby, which the primary knows by a name."""
        program = server_account.bundled_programs() / "pg_basebackup"
        dsn = f"{primary.admin_dsn}?application_name={name}"
        options = [f"--dbname={dsn}", f"--pgdata={self._data}", "--write-recovery-conf"]
        options += ["--checkpoint=fast", "--no-sync"]
        subprocess.run([str(program), *options], check=True, capture_output=True)
        self._account.take(self._data)

    def use_up_transactions(self, oldest: int, leave: int) -> None:
        """Leave so many transactions to one that is down, until it takes no more."""
        # For root the server's programs are a copy, which has not this one.
        program = self._programs / "pg_resetwal"
        if not program.exists():
            shutil.copy(server_account.bundled_programs() / program.name, program)
        following = oldest + 2**31 - 3_000_000 - leave
        state = self._data / "pg_xact" / f"{following >> 20:04X}"
        state.write_bytes(bytes(1 << 18))
        self._account.take(self._data)
        options = [f"--pgdata={self._data}", "--force", "--oldest-transaction-id", str(oldest)]
        options += ["--next-transaction-id", str(following)]
        subprocess.run(
            [str(program), *options],
            check=True,
            capture_output=True,
            cwd="/",
            **self._account.switch(),
        )

    def start(self, **settings: str) -> None:
        """Start it and wait until it lets us in."""
        chosen = {**_SETTINGS, "port": str(self.port), **settings}
        self._process = subprocess.Popen(
            [
                str(self._programs / "postgres"),
                f"-D{self._data}",
                *(f"-c{name}={value}" for name, value in chosen.items()),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=self._environment,
            **self._account.switch(),
        )
        eventually(lambda: answers(self.admin_dsn), "the server")

    def has_ended(self) -> bool:
        """Whether it is down, although it was started."""
        return self._process is not None and self._process.poll() is not None

    def stop(self) -> None:
        """Stop it at once and in order, where it is up."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait()

    def kill(self) -> None:
        """Kill it and all its processes, as a machine does that loses its power."""
        assert self._process is not None
        children = psutil.Process(self._process.pid).children()
        self._process.kill()
        self._process.wait()
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(children)


@contextmanager
def server_folder() -> Iterator[Path]:
    """A folder for servers, which runs for root under an account of their own."""
    folder = Path(tempfile.mkdtemp(prefix="assistant-server-", dir="/tmp"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def answers(dsn: str) -> bool:
    """Whether somebody lets us in."""
    with suppress(psycopg.OperationalError), psycopg.connect(dsn):
        return True
    return False
