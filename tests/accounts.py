"""Whom embedded servers are started as: this account, or an ordinary user in a child process."""

from __future__ import annotations

import contextlib
import os
import pwd
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

ROOT = os.geteuid() == 0
PROJECT = Path(__file__).resolve().parent.parent
LIBRARIES = Path(psycopg.__file__).parent.parent

only_root = pytest.mark.skipif(not ROOT, reason="needs root")
only_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")

DRIVER = """
import asyncio, os, sys
from pathlib import Path
import psycopg
from assistant_cli.embedded_postgres import EmbeddedPostgres
from assistant_cli.errors import AssistantError

async def main(verb, home, *rest):
    server = EmbeddedPostgres(Path(home))
    if verb == "start":
        print(await server.start(lambda line: print(line, file=sys.stderr)))
        rest = rest or (server.dsn(),)
    elif verb == "stop":
        print(await server.stop())
    elif verb == "dsn":
        print(server.dsn())
    async with await psycopg.AsyncConnection.connect(rest[0]) if rest else Nothing() as connection:
        if connection:
            await connection.execute("SELECT 1")
            print(server.dsn() if verb == "start" else "1")

class Nothing:
    async def __aenter__(self): return None
    async def __aexit__(self, *_): return None

os.umask(int(os.environ.get("TEST_UMASK", "022"), 8))
try:
    asyncio.run(main(*sys.argv[1:]))
except AssistantError as error:
    print(type(error).__name__, error)
"""


@dataclass(frozen=True)
class Account:
    """Whom a child process runs as; the interpreter must be one that this user can execute."""

    name: str
    python: str
    switch: dict[str, Any]

    def spawn(self, verb: str, home: Path, *rest: str, **more: str) -> subprocess.Popen[str]:
        paths = os.pathsep.join([str(PROJECT), str(LIBRARIES)])
        return subprocess.Popen(
            [self.python, "-W", "error", "-c", DRIVER, verb, str(home), *rest],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
            env={**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1", **more},
            **self.switch,
        )

    def run(self, verb: str, home: Path, *rest: str, **more: str) -> tuple[str, str]:
        with self.spawn(verb, home, *rest, **more) as child:
            out, err = child.communicate(timeout=60)
        return out.splitlines()[0] if out else "", err


def reachable(path: Path) -> bool:
    return all(parent.stat().st_mode & stat.S_IXOTH for parent in path.resolve().parents)


def ordinary_account() -> Account:
    """Somebody who is not root; a test for which there is nobody is skipped."""
    if not ROOT:
        return Account(pwd.getpwuid(os.geteuid()).pw_name, sys.executable, {})
    version = f"python3.{sys.version_info.minor}"
    pythons = [sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"]
    usable = [name for name in pythons if Path(name).exists() and reachable(Path(name))]
    if not usable or not reachable(LIBRARIES / "x") or not reachable(PROJECT / "x"):
        pytest.skip("no interpreter that an ordinary user can execute")
    nobody = pwd.getpwnam("nobody")
    switch = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    return Account("nobody", usable[0], switch)


def servers_below(folders: list[Path]) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.name() in ("postgres", "initdb") and any(
                str(folder) in " ".join([process.cwd(), *process.cmdline()]) for folder in folders
            ):
                found.append(process)
    return found


def end_servers(folders: list[Path]) -> None:
    for process in servers_below(folders):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    until(lambda: not servers_below(folders))


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.003)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)
