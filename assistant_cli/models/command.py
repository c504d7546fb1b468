"""A shell command as a model: prompt on stdin, reply on stdout."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from asyncio.subprocess import PIPE, Process, SubprocessStreamProtocol
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ..redaction import without_secrets
from . import ModelError, Prompt

_MAX_REPLY_BYTES = 1_000_000
_MAX_ERROR_CHARACTERS = 2_000
_BLOCK_BYTES = 65_536
_GRACE_SECONDS = 2.0
_TELLING = re.compile("error|fatal", re.IGNORECASE)


class CommandModel:
    """Runs `command:CMD` with `sh -c` for every prompt.

    The command finds the facts in `ASSISTANT_AGENT`, `ASSISTANT_CONVERSATION` and
    `ASSISTANT_TURN_ID`. A non-zero exit fails the turn, with its stderr as the reason.
    """

    talks = False

    def __init__(self, name: str, database_url: str | None) -> None:
        # The log and the turns name it; a shell may have put a key into it.
        self.name = without_secrets(name)
        self._command = name.removeprefix("command:")
        self._database_url = database_url

    async def reply(self, prompt: Prompt) -> str:
        starting = asyncio.create_task(_start(self._command, self._environment(prompt)))
        try:
            running = await asyncio.shield(starting)
        except asyncio.CancelledError:
            await _end(await starting)
            raise
        try:
            stdout, stderr = await _communicate(running, prompt.text.encode() + b"\n")
        except BaseException:
            await _end(running)
            raise
        code = running.transport.get_returncode()
        if code:
            raise ModelError(_describe_failure(code, stderr))
        return _decode(stdout).rstrip("\n")

    def _environment(self, prompt: Prompt) -> dict[str, str]:
        facts = {
            "ASSISTANT_AGENT": prompt.agent,
            "ASSISTANT_CONVERSATION": prompt.conversation,
            "ASSISTANT_TURN_ID": str(prompt.turn_id),
        }
        if self._database_url:
            facts["ASSISTANT_DATABASE_URL"] = self._database_url
        return {**os.environ, **facts}


@dataclass(frozen=True)
class _Running:
    """A command, the transport that lets go of its pipes, and whether it has ended."""

    process: Process
    transport: asyncio.SubprocessTransport
    ended: asyncio.Event

    def close_pipes(self) -> None:
        """Let go of the pipes, which what left the command's group may hold for ever."""
        for pipe in filter(None, map(self.transport.get_pipe_transport, range(3))):
            pipe.close()


class _Protocol(SubprocessStreamProtocol):
    """Tells at once that the command has ended: `wait` would wait for its pipes as well."""

    def __init__(self, ended: asyncio.Event) -> None:
        super().__init__(limit=_BLOCK_BYTES, loop=asyncio.get_running_loop())
        self._ended = ended

    def process_exited(self) -> None:
        super().process_exited()
        self._ended.set()


async def _start(command: str, environment: dict[str, str]) -> _Running:
    loop = asyncio.get_running_loop()
    # In a session of its own: Ctrl-C in the terminal is the assistant's to handle, and
    # a deadline can end the command with all it started.
    ended = asyncio.Event()
    transport, protocol = await loop.subprocess_exec(
        lambda: _Protocol(ended),
        "/bin/sh",
        "-c",
        command,
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        start_new_session=True,
        env=environment,
    )
    return _Running(Process(transport, protocol, loop), transport, ended)


async def _communicate(running: _Running, prompt: bytes) -> tuple[bytes, bytes]:
    """Feed the command its prompt; what it said on stdout and stderr until it ended."""
    process = running.process
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    talk = asyncio.gather(
        _feed(process.stdin, prompt), _read_limited(process.stdout), _read_tail(process.stderr)
    )
    ended = asyncio.create_task(running.ended.wait())
    try:
        either: set[asyncio.Future[Any]] = {talk, ended}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        # What it has left running may hold its pipes, and is no part of the reply.
        await asyncio.wait({talk}, timeout=_GRACE_SECONDS)
        if not talk.done():
            running.close_pipes()
        _, stdout, stderr = await talk
        await ended
    finally:
        # Or asyncio would log that its exception was never retrieved.
        talk.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        talk.cancel()
        ended.cancel()
    return stdout, stderr


async def _feed(stdin: asyncio.StreamWriter, prompt: bytes) -> None:
    # A command may well answer without reading its prompt to the end.
    with suppress(BrokenPipeError, ConnectionResetError):
        stdin.write(prompt)
        await stdin.drain()
    stdin.close()


async def _read_limited(stream: asyncio.StreamReader) -> bytes:
    reply = bytearray()
    while block := await stream.read(_BLOCK_BYTES):
        reply += block
        if len(reply) > _MAX_REPLY_BYTES:
            raise ModelError(f"the command's reply is larger than {_MAX_REPLY_BYTES:,} bytes")
    return bytes(reply)


async def _read_tail(stream: asyncio.StreamReader) -> bytes:
    tail = b""
    while block := await stream.read(_BLOCK_BYTES):
        tail = (tail + block)[-4 * _MAX_ERROR_CHARACTERS :]
    return tail


async def _end(running: _Running) -> None:
    """End the command and all it started: politely, then not."""
    process = running.process
    running.close_pipes()
    try:
        _signal_group(process.pid, signal.SIGTERM)
        with suppress(TimeoutError):
            async with asyncio.timeout(_GRACE_SECONDS):
                await process.wait()
    finally:
        _signal_group(process.pid, signal.SIGKILL)
    await process.wait()


def _signal_group(group: int, number: signal.Signals) -> None:
    # macOS does not permit it where only zombies are left.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _describe_failure(code: int, stderr: bytes) -> str:
    """How it ended, with the line that best tells why; below, all it said where that is more."""
    how = f"was killed by signal {-code}" if code < 0 else f"exited with {code}"
    said = _decode(stderr).strip()
    text = said[-_MAX_ERROR_CHARACTERS:]
    # A part of a line could be a part of the prompt, which nobody would recognise as such.
    whole = re.split(r"[\r\n]+", text)[text != said :]
    lines = [line.strip() for line in whole if line.strip()]
    telling = [line for line in lines if _TELLING.search(line)] or lines
    summary = f"the model's command {how}" + (f": {telling[-1]}" if telling else "")
    return summary if [text] == lines else f"{summary}\n{text}".rstrip()


def _decode(output: bytes) -> str:
    return output.decode("utf-8", errors="replace").replace("\x00", "\ufffd")
