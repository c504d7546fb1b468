"""Another user can neither read, connect nor signal, and what is theirs is not used.

As root the tests become two ordinary users, of whom one starts the server and one is curious.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from .accounts import (
    LIBRARIES,
    PROJECT,
    ROOT,
    end_servers,
    mode,
    only_linux,
    only_root,
    ordinary_account,
    servers_below,
)
from .conftest import Finished

pytestmark = only_linux

CURIOUS = 12345
"""The user id of the curious, which has no name."""

# Tries to read, to write and to connect to each path, and to signal each process.
TRY_ALL = """
import json, os, socket, sys
paths, pids = json.load(sys.stdin)
for path in paths:
    for flags in (os.O_RDONLY | os.O_NONBLOCK, os.O_WRONLY | os.O_NONBLOCK):
        try:
            os.close(os.open(path, flags))
            print("opened", path, flags)
        except OSError:
            pass
    for work in (os.listdir, os.unlink, lambda path: os.mkdir(path + "/x"),
                 lambda path: os.rename(path, path + ".moved"),
                 lambda path: os.chmod(path, 0o777),
                 lambda path: socket.socket(socket.AF_UNIX).connect(path)):
        try:
            work(path)
            print("did", work, path)
        except OSError:
            pass
for pid in pids:
    try:
        os.kill(pid, 0)
        print("may signal", pid)
    except PermissionError:
        pass
"""


@dataclass(frozen=True)
class User:
    """Somebody who runs the program in a home."""

    python: str
    switch: dict[str, Any]
    home: Path

    def __call__(self, *arguments: str, stdin: str = "", umask: int = 0o022) -> Finished:
        return self.run("-m", "assistant_cli", *arguments, stdin=stdin, umask=umask)

    def run(self, *arguments: str, stdin: str = "", umask: int = 0o022) -> Finished:
        done = subprocess.run(
            [self.python, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            env={
                "PATH": os.environ["PATH"],
                "HOME": "/nonexistent",
                "ASSISTANT_HOME": str(self.home),
                "PYTHONPATH": os.pathsep.join([str(PROJECT), str(LIBRARIES)]),
                "PYTHONDONTWRITEBYTECODE": "1",
            },
            umask=umask,
            **self.switch,
        )
        return Finished(done.returncode, done.stdout, done.stderr)


def folder_for_all() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="ou-", dir="/tmp")).resolve()
    folder.chmod(0o1777)
    return folder


def remove(folder: Path) -> None:
    end_servers([folder])
    shutil.rmtree(folder)


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that everybody can write to, as /tmp is."""
    folder = folder_for_all()
    yield folder
    remove(folder)


@pytest.fixture(scope="module", params=["ordinary user", "root"])
def owner(request: pytest.FixtureRequest) -> Iterator[User]:
    """Somebody whose server is up and has been used, with a umask that forbids nothing."""
    if request.param == "root" and not ROOT:
        pytest.skip("needs root")
    account = ordinary_account()
    folder = folder_for_all()
    switch = {} if request.param == "root" else account.switch
    owner = User(account.python, switch, folder / "home")
    for command in (
        ["kv", "set", "k", '"secret"'],
        ["send", "secret"],
        ["run", "--until-idle"],
        ["status", "--json"],
        ["kv", "get", "k"],
        ["db", "stop"],
        ["db", "start"],
    ):
        done = owner(*command, umask=0o000)
        assert done.code == 0, (command, done.err)
    yield owner
    remove(folder)


@pytest.fixture
def curious(owner: User) -> User:
    """Somebody else, with the owner's home for a home."""
    if not ROOT:
        pytest.skip("needs root")
    nobody_else = {"user": CURIOUS, "group": CURIOUS, "extra_groups": []}
    return User(owner.python, nobody_else, owner.home)


def paths_below(home: Path) -> list[Path]:
    """All there is in a home, but the copy of the server's programs that root has there."""
    found = [home, *home.rglob("*")]
    return [path for path in found if not any(p.startswith("programs-") for p in path.parts)]


def test_nothing_in_the_home_is_open_to_others_whatever_the_umask(owner: User) -> None:
    # Root's server runs under an account of its own, which has to pass through.
    passage = 0o700 if owner.switch else 0o711
    passages = {owner.home, owner.home / "postgres"}
    wrong = []
    for path in paths_below(owner.home):
        found = path.lstat().st_mode
        folder = stat.S_ISDIR(found) or stat.S_ISSOCK(found)
        wanted = passage if path in passages else 0o700 if folder else 0o600
        if not stat.S_ISLNK(found) and stat.S_IMODE(found) != wanted:
            wrong.append((path, oct(found)))
    assert wrong == []
    programs = [p for p in owner.home.glob("postgres/programs-*/**/*") if not p.is_symlink()]
    assert [path for path in programs if mode(path) & 0o022] == []


def test_another_user_can_neither_read_nor_connect_nor_signal(owner: User, curious: User) -> None:
    paths = [str(path) for path in paths_below(owner.home)]
    pids = [process.pid for process in servers_below([owner.home])]
    assert any(path.endswith(".s.PGSQL.5432") for path in paths)
    assert len(pids) > 3
    done = curious.run("-c", TRY_ALL, stdin=json.dumps([paths, pids]))
    assert (done.code, done.out) == (0, ""), done
    # The same tries succeed for whoever may.
    tried = owner.run("-c", TRY_ALL.replace("os.unlink, ", ""), stdin=json.dumps([[], pids[:1]]))
    assert "may signal" in tried.out or owner.switch == {}


def test_the_server_listens_on_no_port(owner: User) -> None:
    for process in servers_below([owner.home]):
        assert process.net_connections("inet") == []


@pytest.mark.parametrize(
    "command",
    [
        ["status"],
        ["kv", "get", "k"],
        ["send", "hello"],
        ["run"],
        ["doctor"],
        ["db", "start"],
        ["db", "stop"],
        ["db", "status"],
        ["db", "url"],
        ["--database-url", "postgresql://127.0.0.1:1/x", "status"],
    ],
    ids=" ".join,
)
def test_a_home_of_another_user_is_not_used(owner: User, curious: User, command: list[str]) -> None:
    done = curious(*command)
    assert (done.code, done.out) == (77, ""), done
    name = pwd.getpwuid(owner.home.stat().st_uid).pw_name
    told = f"{owner.home} belongs to {name}; set ASSISTANT_HOME to a folder of your own"
    assert done.err == f"assistant: {told}\n"


@pytest.fixture
def mine(place: Path) -> User:
    """An ordinary user with a home of their own that has nothing in it."""
    account = ordinary_account()
    home = place / "mine"
    home.mkdir(mode=0o700)
    if ROOT:
        os.chown(home, account.switch["user"], account.switch["group"])
    return User(account.python, account.switch, home)


def refusal(user: User, *command: str) -> str:
    done = user(*(command or ("status",)))
    assert (done.code, done.out, len(done.err.splitlines())) == (77, "", 1), done
    return done.err


@pytest.mark.parametrize("bits", [0o720, 0o702, 0o777, 0o1777], ids=oct)
def test_a_home_that_others_can_write_to_is_not_used(mine: User, bits: int) -> None:
    mine.home.chmod(bits)
    told = refusal(mine)
    # What is sticky is meant for others.
    elsewhere = "set ASSISTANT_HOME to a folder of your own"
    cure = elsewhere if bits & 0o1000 else f"chmod go-w {mine.home}"
    assert told == f"assistant: others can write to {mine.home}; {cure}\n"
    assert list(mine.home.iterdir()) == []


def test_a_config_file_that_others_can_write_to_is_not_read(mine: User) -> None:
    config = mine.home / "config.toml"
    config.write_text('model = "command:touch /tmp/owned"')
    config.chmod(0o666)
    assert f"others can write to {config}" in refusal(mine, "run")


@pytest.mark.parametrize("made", ["by now", "not yet"])
def test_a_home_that_others_can_replace_is_not_used(mine: User, place: Path, made: str) -> None:
    place.chmod(0o777)
    user = mine if made == "by now" else User(mine.python, mine.switch, place / "new" / "home")
    told = f"anybody can put another folder in the place of {user.home}, as {place} is open to all"
    assert told in refusal(user)
    assert not (place / "new").exists()


@only_root
def test_a_link_to_or_of_another_user_is_not_followed(mine: User, place: Path) -> None:
    theirs = place / "theirs"
    theirs.mkdir()
    os.chown(theirs, CURIOUS, CURIOUS)
    link = place / "link"
    link.symlink_to(theirs)
    assert "belongs to user id 12345" in refusal(User(mine.python, mine.switch, link))
    link.unlink()
    link.symlink_to(mine.home)
    os.chown(link, CURIOUS, CURIOUS, follow_symlinks=False)
    assert "belongs to user id 12345" in refusal(User(mine.python, mine.switch, link))
    assert list(mine.home.iterdir()) == []


@only_root
def test_a_server_that_another_user_planted_is_not_even_asked(mine: User, place: Path) -> None:
    theirs = place / "theirs"
    sockets = theirs / "postgres" / "socket"
    sockets.mkdir(parents=True)
    with closing(socket.socket(socket.AF_UNIX)) as planted:
        planted.bind(str(sockets / ".s.PGSQL.5432"))
        planted.listen()
        planted.setblocking(False)
        for path in [theirs, *theirs.rglob("*")]:
            path.chmod(0o777)
            os.chown(path, CURIOUS, CURIOUS)
        theirs.chmod(0o755)
        assert "belongs to user id 12345" in refusal(
            User(mine.python, mine.switch, theirs), "send", "secret"
        )
        with pytest.raises(BlockingIOError):
            planted.accept()


def test_a_home_that_cannot_be_looked_at_is_refused_in_one_line(mine: User) -> None:
    inner = mine.home / "inner"
    inner.mkdir()
    if not ROOT:
        mine.home.chmod(0)
    else:
        os.chown(mine.home, 0, 0)
    try:
        told = refusal(User(mine.python, mine.switch, inner))
        assert "Permission denied" in told
    finally:
        with suppress(OSError):
            mine.home.chmod(0o700)
