"""The processes of the embedded server: which are there, starting one, ending one.

A process counts as the server's if it is named `postgres` and its working folder is the data
folder. The number in `postmaster.pid` alone proves nothing: after a crash or a restart of the
machine it can be anybody's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import DatabaseUnreachableError
from .server_account import ServerAccount

if TYPE_CHECKING:
    from psutil import Process

_SEVERE = ("ERROR: ", "FATAL: ", "PANIC: ")
_TOO_SOON = "FATAL:  the database system is "
"""How a server refuses whoever connects while it starts or ends; not why it ended."""
_SETTINGS = {
    "listen_addresses": "",
    "port": "5432",
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "max_wal_size": "256MB",
    "jit": "off",
    "io_method": "sync",
    "max_logical_replication_workers": "0",
    # systemd-logind removes a user's POSIX shared memory when the user logs out.
    "dynamic_shared_memory_type": "mmap",
    "logging_collector": "on",
    "log_directory": "log",
    "log_filename": "postgresql-%a.log",
    "log_file_mode": "0600",
    "log_truncate_on_rotation": "on",
    "log_rotation_age": "1d",
    "log_rotation_size": "0",
    "log_checkpoints": "off",
    # What users store must not appear in the log.
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
}


def clean_environment() -> dict[str, str]:
    """The environment of the server's programs, without the secrets and PG* of the caller's."""
    kept = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TZ")
    return {name: os.environ[name] for name in kept if name in os.environ} | {"LC_ALL": "C"}


def find_postmaster(data: Path) -> Process | None:
    """The running server of this data folder."""
    import psutil

    pid = _recorded_pid(data / "postmaster.pid")
    if pid is None:
        return None
    try:
        process = psutil.Process(pid)
        return process if _works_in(process, data) else None
    except psutil.Error:
        return None


def server_processes(data: Path) -> list[Process]:
    """All processes of a server of this data folder, those that outlived their postmaster too."""
    import psutil

    return [process for process in psutil.process_iter() if _works_in(process, data)]


def end_servers_of_removed_folder(data: Path) -> None:
    """End the server of a folder that was removed under it and made again.

    Left alone it notices within a minute, and takes the new server's socket with it.
    """
    import psutil

    for process in server_processes(data):
        with contextlib.suppress(OSError, psutil.Error):
            if not Path(f"/proc/{process.pid}/cwd").samefile(data):
                process.kill()


def misleading_lock_files(data: Path, socket: Path) -> list[Path]:
    """The pid file and the socket's lock file, where Postgres would not start because of them.

    That is a damaged one, or one that names somebody else's process or a zombie. A file that
    names a process that is gone is left to Postgres, which looks for that server's shared memory.
    """
    if find_postmaster(data):
        return []
    files = (data / "postmaster.pid", socket / ".s.PGSQL.5432.lock")
    return [file for file in files if _misleads(file)]


def _misleads(file: Path) -> bool:
    import psutil

    pid = _recorded_pid(file)
    return file.exists() and (pid is None or psutil.pid_exists(pid))


def _works_in(process: Process, data: Path) -> bool:
    import psutil

    try:
        return process.name() == "postgres" and process.cwd() == str(data)
    except psutil.Error:
        return False


def _recorded_pid(file: Path) -> int | None:
    try:
        pid = int(file.read_bytes().split(b"\n")[0])
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return pid if 0 < pid < 2**31 else None


def says_ready(data: Path) -> bool:
    """Whether the server itself says, in its pid file, that it accepts connections."""
    try:
        return (data / "postmaster.pid").read_bytes().split(b"\n")[7].strip() == b"ready"
    except (FileNotFoundError, IndexError):
        return False


async def run_initdb(programs: Path, data: Path, account: ServerAccount, superuser: str) -> None:
    """Create a cluster in an empty folder.

    Raises:
        DatabaseUnreachableError: `initdb` failed, for instance because the disk is full.
    """
    process = await asyncio.create_subprocess_exec(
        programs / "initdb",
        f"--pgdata={data}",
        f"--username={superuser}",
        "--auth-local=peer",
        "--auth-host=reject",
        "--encoding=UTF8",
        "--locale-provider=builtin",
        "--builtin-locale=C.UTF-8",
        "--locale=C",
        "--no-instructions",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        cwd="/",
        env=clean_environment(),
        start_new_session=True,
        umask=0o077,
        **account.switch(),
    )
    try:
        _, complaint = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        lines = complaint.decode("utf-8", "replace").strip().splitlines()
        errors = [line for line in lines if "error" in line.lower() or "FATAL" in line]
        reason = (errors or lines or [f"initdb ended with {process.returncode}"])[0]
        raise DatabaseUnreachableError(f"cannot create the embedded Postgres: {reason}")


def launch(
    programs: Path, folder: Path, socket: Path, account: ServerAccount
) -> subprocess.Popen[bytes]:
    """Start the server as a process of its own, which outlives this one and its terminal."""
    quoted = str(socket).replace('"', '""')
    settings = {**_SETTINGS, "unix_socket_directories": f'"{quoted}"'}
    command = [str(programs / "postgres"), "-D", str(folder / "data")]
    for name, value in settings.items():
        command += ["-c", f"{name}={value}"]
    log = os.open(folder / "startup.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        process = subprocess.Popen(  # noqa: S603
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env=clean_environment(),
            start_new_session=True,
            umask=0o077,
            **account.switch(),
        )
    finally:
        os.close(log)
    # Reaps the server, should it end while this process lives.
    threading.Thread(target=process.wait, name="reap-postgres", daemon=True).start()
    return process


def last_words(folder: Path) -> str:
    """The line of the server's output that best tells why it ended."""
    logs = sorted((folder / "data" / "log").glob("*.log"), key=lambda log: log.stat().st_mtime)
    for source in (folder / "startup.log", *logs[-1:]):
        text = source.read_text("utf-8", errors="replace") if source.exists() else ""
        latest = text.rpartition("starting PostgreSQL ")[2]
        severe = [
            line
            for line in latest.splitlines()
            if any(word in line for word in _SEVERE) and _TOO_SOON not in line
        ]
        if severe:
            return severe[0].partition("] ")[2] or severe[0]
    text = (folder / "startup.log").read_text("utf-8", errors="replace").strip()
    return text.splitlines()[-1] if text else "it said nothing"


async def shut_down(process: Process) -> None:
    """End a server: first in order, then at once, which costs a crash recovery later.

    Raises:
        DatabaseUnreachableError: it is still there.
    """
    for how, seconds in ((signal.SIGINT, 60.0), (signal.SIGQUIT, 15.0)):
        if await _ended(process, how, seconds):
            return
    raise DatabaseUnreachableError(f"the embedded Postgres (pid {process.pid}) does not stop")


async def _ended(process: Process, how: signal.Signals, seconds: float) -> bool:
    import psutil

    deadline = time.monotonic() + seconds
    try:
        process.send_signal(how)
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.02)
    except psutil.NoSuchProcess:
        pass
    return True
