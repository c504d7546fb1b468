"""A shell command as a model: prompt on stdin, reply on stdout."""

from __future__ import annotations

import asyncio
import os
import signal
from asyncio.subprocess import PIPE, Process
from contextlib import suppress

from . import ModelError, Prompt

_MAX_REPLY_BYTES = 1_000_000
_MAX_ERROR_CHARACTERS = 2_000
_GRACE_SECONDS = 2.0


class CommandModel:
    """Runs `command:CMD` with `sh -c` for every prompt.

    The command finds the facts in `ASSISTANT_AGENT`, `ASSISTANT_CONVERSATION` and
    `ASSISTANT_TURN_ID`. A non-zero exit fails the turn, with its stderr as the reason.
    """

    reflects = True

    def __init__(self, name: str, database_url: str | None = None) -> None:
        self.name = name
        self._command = name.removeprefix("command:")
        self._database_url = database_url

    async def reply(self, prompt: Prompt) -> str:
        # In a session of its own: Ctrl-C in the terminal is the assistant's to handle, and
        # a deadline can end the command with all it started.
        process = await asyncio.create_subprocess_exec(
            "/bin/sh",
            "-c",
            self._command,
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            start_new_session=True,
            env=self._environment(prompt),
        )
        try:
            stdout, stderr = await _communicate(process, prompt.text.encode() + b"\n")
        except BaseException:
            await _end(process)
            raise
        if process.returncode:
            raise ModelError(_describe_failure(process.returncode, stderr))
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


async def _communicate(process: Process, prompt: bytes) -> tuple[bytes, bytes]:
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    _, stdout, stderr = await asyncio.gather(
        _feed(process.stdin, prompt), _read_limited(process.stdout), _read_tail(process.stderr)
    )
    await process.wait()
    return stdout, stderr


async def _feed(stdin: asyncio.StreamWriter, prompt: bytes) -> None:
    # A command may well answer without reading its prompt to the end.
    with suppress(BrokenPipeError, ConnectionResetError):
        stdin.write(prompt)
        await stdin.drain()
    stdin.close()


async def _read_limited(stream: asyncio.StreamReader) -> bytes:
    reply = bytearray()
    while block := await stream.read(65_536):
        reply += block
        if len(reply) > _MAX_REPLY_BYTES:
            raise ModelError(f"the command's reply is larger than {_MAX_REPLY_BYTES:,} bytes")
    return bytes(reply)


async def _read_tail(stream: asyncio.StreamReader) -> bytes:
    tail = b""
    while block := await stream.read(65_536):
        tail = (tail + block)[-4 * _MAX_ERROR_CHARACTERS :]
    return tail


async def _end(process: Process) -> None:
    """End the command and all it started: politely, then not."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), _GRACE_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


def _describe_failure(code: int, stderr: bytes) -> str:
    how = f"was killed by signal {-code}" if code < 0 else f"exited with {code}"
    text = _decode(stderr).strip()[-_MAX_ERROR_CHARACTERS:]
    return f"the model's command {how}" + (f": {text}" if text else "")


def _decode(output: bytes) -> str:
    return output.decode("utf-8", errors="replace").replace("\x00", "\ufffd")
