"""Places for embedded servers, as whom they are started, and what is asked of them."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from assistant_cli.embedded_postgres import EmbeddedPostgres

from ..accounts import ROOT, Account, end_servers, ordinary_account

VAR_LIB = Path("/var/lib/assistant")


@pytest.fixture(scope="session")
def ordinary() -> Account:
    return ordinary_account()


@pytest.fixture(scope="session")
def me() -> Account:
    return Account(pwd.getpwuid(os.geteuid()).pw_name, sys.executable, {})


@pytest.fixture(params=["me", "ordinary user"])
def account(request: pytest.FixtureRequest) -> Account:
    if request.param == "me":
        return Account(pwd.getpwuid(os.geteuid()).pw_name, sys.executable, {})
    if not ROOT:
        pytest.skip("that is me")
    return ordinary_account()


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that everybody can pass and write; its servers are ended in the end."""
    before = set(VAR_LIB.glob("*")) if ROOT else set()
    folder = Path(tempfile.mkdtemp(prefix="ep-", dir="/tmp")).resolve()
    folder.chmod(0o1777)
    yield folder
    links = [link for link in folder.rglob("postgres") if link.is_symlink()] if ROOT else []
    elsewhere = [link.resolve() for link in links if link.resolve().exists()]
    end_servers([folder, *elsewhere])
    for path in [folder, *elsewhere]:
        shutil.rmtree(path)
    if ROOT and not before:
        with contextlib.suppress(OSError):
            VAR_LIB.rmdir()


@pytest.fixture(scope="session")
def created() -> Iterator[Callable[[Account], Path]]:
    """A home with a cluster in it, made once an account and stopped."""
    base = Path(tempfile.mkdtemp(prefix="ep-", dir="/tmp")).resolve()
    base.chmod(0o1777)
    homes: dict[str, Path] = {}

    def home_of(account: Account) -> Path:
        if account.name not in homes:
            homes[account.name] = base / account.name
            assert account.run("start", base / account.name)[0] == "True"
            assert account.run("stop", base / account.name)[0] == "True"
        return homes[account.name]

    yield home_of
    end_servers([base])
    shutil.rmtree(base)


@pytest.fixture
def home(account: Account, created: Callable[[Account], Path]) -> Iterator[Path]:
    """A home with a cluster in it that is not running; tests leave it usable."""
    home = created(account)
    yield home
    end_servers([home])


@pytest.fixture
def server(me: Account, created: Callable[[Account], Path]) -> Iterator[EmbeddedPostgres]:
    """A server that is created and not running; tests leave it usable."""
    server = EmbeddedPostgres(created(me))
    yield server
    end_servers([server.home])


@pytest.fixture
def new_server(place: Path) -> EmbeddedPostgres:
    return EmbeddedPostgres(place / "home")


async def query(server: EmbeddedPostgres, statement: str) -> Any:
    async with await psycopg.AsyncConnection.connect(server.dsn(), autocommit=True) as connection:
        cursor = await connection.execute(statement)
        row = await cursor.fetchone() if cursor.description else None
        return row[0] if row else None


def silent(line: str) -> None:
    pass


def postmaster(server: EmbeddedPostgres) -> psutil.Process:
    return psutil.Process(int((server.data_folder / "postmaster.pid").read_text().split()[0]))
