"""Commands that the program runs for its user, in the user's terminal."""

from __future__ import annotations

import asyncio
import os
import signal
from asyncio.subprocess import Process
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from .errors import AssistantError
from .signals import handling, unless_ignored

_GRACE_SECONDS = 2.0
_CAUGHT = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


class CommandNotFoundError(AssistantError):
    """There is no such command."""

    exit_code = 127


class CommandNotExecutableError(AssistantError):
    """The command is there and cannot be executed."""

    exit_code = 126


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: its exit code as a shell gives it, 128 + n for signal n.
        signal: the last signal that this process was sent meanwhile, which asks it to end too.
    """

    code: int
    signal: int | None


async def run_command(
    command: Sequence[str], *, env: Mapping[str, str] | None = None, stdin: bytes | None = None
) -> Ended:
    """Run a command to its end.

    SIGTERM and SIGHUP are passed on; the terminal's Ctrl-C reaches the command by itself. The
    command inherits the open files of this process and the signals that it ignores.
    `stdin`: what it reads; None: this process's own.

    Raises:
        CommandNotFoundError, CommandNotExecutableError: it cannot be started.
    """
    signals = _Signals()
    # To handle a signal that is ignored, as under nohup, would make the command hear it again.
    with handling(unless_ignored(*_CAUGHT), signals.catch):
        process = await _start(command, env, None if stdin is None else asyncio.subprocess.PIPE)
        signals.pass_on_to(process)
        try:
            await process.communicate(stdin)
        except BaseException:
            await _end(process)
            raise
    code = process.returncode or 0
    return Ended(128 - code if code < 0 else code, signals.last)


async def _end(process: Process) -> None:
    """End a command that is not waited for any longer: politely, then not."""
    _send(process, signal.SIGTERM)
    with suppress(TimeoutError):
        async with asyncio.timeout(_GRACE_SECONDS):
            await process.wait()
    _send(process, signal.SIGKILL)
    await process.wait()


def _send(process: Process, number: int) -> None:
    """Send a signal to a command, unless it has ended.

    Not by asyncio's Process.send_signal: it polls the child first, and the exit code that it takes
    there is lost to whoever waits for it.
    """
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)


async def _start(
    command: Sequence[str], env: Mapping[str, str] | None, stdin: int | None
) -> Process:
    try:
        return await asyncio.create_subprocess_exec(*command, env=env, stdin=stdin, close_fds=False)
    except FileNotFoundError:
        raise CommandNotFoundError(f"there is no command {command[0]!r}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CommandNotExecutableError(f"cannot execute {command[0]!r}: {reason}") from None


class _Signals:
    """Catches signals from before the command starts, so that none is lost or ends us alone."""

    def __init__(self) -> None:
        self.last: int | None = None
        self._process: Process | None = None

    def pass_on_to(self, process: Process) -> None:
        self._process = process
        if self.last is not None:
            self._pass_on(self.last)

    def catch(self, number: int) -> None:
        self.last = number
        self._pass_on(number)

    def _pass_on(self, number: int) -> None:
        if self._process is not None and number != signal.SIGINT:
            _send(self._process, number)
