"""Which process is this, so that another one can tell later whether it is still alive.

A pid alone is reused, and means nothing on another host or in another container. The identity
is the boot of the machine, the pid namespace, and the start time of the process.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class ProcessIdentity:
    """`host` and `pid` are for people; `key` is what decides: `<machine>/<start time>`."""

    host: str
    pid: int
    key: str


def own_identity() -> ProcessIdentity:
    """The identity of this process; a forked child has one of its own."""
    pid = os.getpid()
    return ProcessIdentity(socket.gethostname(), pid, f"{_machine()}/{_start_time(pid)}")


def known_dead(identity: ProcessIdentity) -> bool:
    """Whether a process is certainly gone: it ran on this very machine and does not any more."""
    machine, _, start_time = identity.key.rpartition("/")
    if machine != _machine():
        return False
    found = _start_time(identity.pid)
    return not _is_hidden(identity.pid) if found is None else found != start_time


@cache
def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        import psutil

        return f"{socket.gethostname()}/{psutil.boot_time():.0f}"


def _is_hidden(pid: int) -> bool:
    """Whether there is a process that this user may not look at: /proc mounted with hidepid."""
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return False


def _start_time(pid: int) -> str | None:
    """The start time in the system's own units; None where no such process is seen."""
    stat = Path(f"/proc/{pid}/stat")
    if stat.parent.parent.joinpath("self").exists():
        try:
            # Field 22 of proc(5); the name in field 2 may hold anything but ends with ')'.
            fields = stat.read_text("utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            return None
        return "ended" if fields[0] in "ZX" else fields[19]
    import psutil

    try:
        return f"{psutil.Process(pid).create_time():.2f}"
    except psutil.Error:
        return None
