"""Runs commands in forks of a process that has imported the program.

To start Python and import everything anew takes most of the time of a short command, and there
are thousands in the tests. A fork is a process of its own all the same, with an environment,
streams and an exit code. Commands that go on are started as a user starts them.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import NoReturn

_PRELOADED = (
    *("asyncio", "logging", "psycopg", "psycopg_binary", "psycopg.rows", "psycopg.types.json"),
    *("rich.console", "rich.live", "rich.table", "tomllib", "typer", "zoneinfo"),
    "assistant_cli.cli.app",
    "assistant_cli.store.kv",
    "assistant_cli.store.opening",
    "assistant_cli.store.status",
)
_CHUNK = 1 << 16


def is_forkable(environment: Mapping[str, str]) -> bool:
    """Whether an environment says nothing that Python, or an import, reads at its start."""
    read_at_start = ("PYTHON", "LD_", "LC_", "TZ", "ASSISTANT_CRASH_AT", "ASSISTANT_DEBUG")
    return not any(name.startswith(read_at_start) for name in environment)


class Forker:
    """The process that forks, started when it is first used."""

    def __init__(self) -> None:
        self._socket, other = socket.socketpair()
        command = [sys.executable, "-m", "tests.forking", str(other.fileno())]
        root = Path(__file__).parent.parent
        self._process = subprocess.Popen(command, pass_fds=[other.fileno()], cwd=root)
        other.close()

    def run(
        self, arguments: Sequence[str], environment: Mapping[str, str], stdin: bytes, timeout: float
    ) -> tuple[int, bytes, bytes]:
        """Run a command to its end; returns its exit code and what it printed.

        Raises:
            TimeoutError: it took longer, in seconds, and was killed.
        """
        ends = [os.pipe() for _ in range(5)]
        request, given, out, err, status = ends
        theirs = [request[0], given[0], out[1], err[1], status[1]]
        socket.send_fds(self._socket, [b"."], theirs)
        for end in theirs:
            os.close(end)
        call = {
            "arguments": list(arguments),
            "environment": dict(environment),
            "cwd": str(Path.cwd()),
        }
        streams = [_Reading(out[0]), _Reading(err[0]), _Reading(status[0])]
        _write(request[1], json.dumps(call).encode())
        threading.Thread(target=_write, args=(given[1], stdin), daemon=True).start()
        for stream in streams:
            stream.join(timeout)
        pid, _, code = streams[2].data.decode().partition(" ")
        if not code or any(stream.is_alive() for stream in streams):
            with suppress(ProcessLookupError):
                os.kill(int(pid), 9)
            raise TimeoutError(f"{' '.join(arguments)} took longer than {timeout}s")
        return int(code), streams[0].data, streams[1].data

    def close(self) -> None:
        """End the process."""
        self._socket.close()
        self._process.wait()


class _Reading(threading.Thread):
    """Reads a pipe to its end."""

    def __init__(self, end: int) -> None:
        super().__init__(daemon=True)
        self.data = b""
        self._end = end
        self.start()

    def run(self) -> None:
        with os.fdopen(self._end, "rb", 0) as pipe:
            while piece := pipe.read(_CHUNK):
                self.data += piece


def _write(end: int, data: bytes) -> None:
    with suppress(BrokenPipeError), os.fdopen(end, "wb") as pipe:
        pipe.write(data)


def _serve(requests: socket.socket) -> None:
    for module in _PRELOADED:
        import_module(module)
    while True:
        asked, ends, _, _ = socket.recv_fds(requests, 1, 5)
        if not asked:
            return
        if os.fork() == 0:
            requests.close()
            _watch(ends)
        for end in ends:
            os.close(end)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass


def _watch(ends: list[int]) -> NoReturn:
    """Run a command in a further fork, and tell its pid and then how it ended."""
    request, *streams, status = ends
    pid = os.fork()
    if pid == 0:
        os.close(status)
        with os.fdopen(request, "rb") as pipe:
            call = json.load(pipe)
        _become(call, streams)
    for end in (request, *streams):
        os.close(end)
    os.write(status, f"{pid} ".encode())
    _, ended = os.waitpid(pid, 0)
    os.write(status, str(os.waitstatus_to_exitcode(ended)).encode())
    os._exit(0)


def _become(call: dict[str, object], streams: list[int]) -> NoReturn:
    """Be the command, with nothing of this process left to be seen."""
    for number, end in enumerate(streams):
        os.dup2(end, number)
        os.close(end)
    os.environ.clear()
    os.environ.update(call["environment"])  # type: ignore[call-overload]
    os.chdir(str(call["cwd"]))
    sys.argv = ["assistant", *call["arguments"]]  # type: ignore[misc]
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    code = 0
    try:
        import_module("assistant_cli.cli.app").main()
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 1
    with suppress(OSError):
        sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
