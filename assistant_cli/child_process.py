"""Commands that the program runs for its user, in the user's terminal."""

from __future__ import annotations

import asyncio
import signal
from asyncio.subprocess import Process
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from .errors import AssistantError


class CommandNotFoundError(AssistantError):
    """There is no such command."""

    exit_code = 127


class CommandNotExecutableError(AssistantError):
    """The command is there and cannot be executed."""

    exit_code = 126


async def run_command(
    command: Sequence[str], *, env: Mapping[str, str] | None = None, stdin: bytes | None = None
) -> int:
    """Run a command to its end; returns its exit code as a shell gives it, 128 + n for signal n.

    SIGTERM and SIGHUP are passed on; the terminal's Ctrl-C reaches the command by itself.
    `stdin`: what it reads; None: this process's own.

    Raises:
        CommandNotFoundError, CommandNotExecutableError: it cannot be started.
    """
    process = await _start(command, env, None if stdin is None else asyncio.subprocess.PIPE)
    with _forwarded_signals(process):
        try:
            await process.communicate(stdin)
        except BaseException:
            with suppress(ProcessLookupError):
                process.terminate()
            await process.wait()
            raise
    code = process.returncode or 0
    return 128 - code if code < 0 else code


async def _start(
    command: Sequence[str], env: Mapping[str, str] | None, stdin: int | None
) -> Process:
    try:
        return await asyncio.create_subprocess_exec(*command, env=env, stdin=stdin)
    except FileNotFoundError:
        raise CommandNotFoundError(f"there is no command {command[0]!r}") from None
    except (OSError, ValueError) as error:
        raise CommandNotExecutableError(f"cannot execute {command[0]!r}: {error}") from None


@contextmanager
def _forwarded_signals(process: Process) -> Iterator[None]:
    loop = asyncio.get_running_loop()

    def forward(number: int) -> None:
        with suppress(ProcessLookupError):
            process.send_signal(number)

    handlers = {signal.SIGTERM: forward, signal.SIGHUP: forward, signal.SIGINT: lambda _: None}
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler, number)
    try:
        yield
    finally:
        for number in handlers:
            loop.remove_signal_handler(number)
