"""PgBouncer in transaction mode, in front of a server on loopback."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from assistant_cli.server_account import initdb_account

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
needs_pgbouncer = pytest.mark.skipif(PGBOUNCER is None, reason="needs pgbouncer")

_CONFIGURATION = """\
[databases]
{database} = host=127.0.0.1 {target}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 4
server_login_retry = 0.5
"""


class Pooler:
    """A pooler that lends four backends, a transaction at a time, and soon tries again for one.

    Args:
        port: where it listens.
        database: what clients call the database.
        target: parameters of its connections to the server, with the port.
    """

    def __init__(self, port: int, database: str, target: str) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="pooler-", dir="/tmp"))
        self._folder.chmod(0o755)
        text = _CONFIGURATION.format(database=database, target=target, listen=port)
        (self._folder / "pgbouncer.ini").write_text(text)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it."""
        self._process = subprocess.Popen(
            [str(PGBOUNCER), str(self._folder / "pgbouncer.ini")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            **initdb_account().switch(),
        )

    def kill(self) -> None:
        """Kill it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def remove(self) -> None:
        """End it and leave nothing behind."""
        self.kill()
        shutil.rmtree(self._folder)
