"""`assistant kv watch`, `export` and `import`: streams of keys."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from ..errors import BadDataError, InputMissingError, UsageError
from . import output
from .commands import Command, CommandBehindDashes
from .session import (
    TIMEOUT,
    complete_keys,
    interruptible,
    optional_duration,
    while_read,
    with_database,
)
from .streams import open_stdin

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from ..store.database import Database
    from ..store.watch import Change

# Longer than any line that is accepted, so that one without an end is refused, not collected.
_PIECE_BYTES = 4_000_000


def register(app: typer.Typer) -> None:
    """Add the commands to the group `kv`."""
    app.command(cls=CommandBehindDashes)(watch)
    app.command(cls=Command)(export)
    app.command(name="import", cls=Command)(import_)


def watch(
    key: Annotated[
        str | None, typer.Argument(autocompletion=complete_keys, help="The key to watch.")
    ] = None,
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- CMD…]", help="Run this on each change instead of printing it."),
    ] = None,
    prefix: Annotated[
        str | None, typer.Option(help="Watch all keys that start with this instead.")
    ] = None,
    no_initial: Annotated[
        bool, typer.Option("--no-initial", help="Leave out what is there at the start.")
    ] = False,
    count: Annotated[int | None, typer.Option("-n", min=1, help="Leave after so many.")] = None,
    timeout: Annotated[str | None, TIMEOUT] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print key, value, revision and times as a document.")
    ] = False,
) -> None:
    """Print the current value, then each change, one line each, through database restarts.

    A line is the value as JSON, and empty where the key was deleted; with --prefix it is
    {"key": …, "value": …} or {"key": …, "deleted": true}. CMD gets the value on stdin, and
    ASSISTANT_KEY and ASSISTANT_REVISION; of a deleted key nothing, and ASSISTANT_DELETED=1.

    \b
    assistant kv watch status_board
    assistant kv watch --prefix memory/ -- sh -c 'echo $ASSISTANT_KEY changed'
    """
    if (key is None) == (prefix is None):
        raise UsageError("give either a key or --prefix")
    shape = "json" if as_json else "entry" if key is None else "value"

    async def follow(database: Database) -> int:
        changes = database.kv.watch(key, prefix=prefix or "", initial=not no_initial)
        return await while_read(_pass_all_on(changes, shape, command, count))

    if code := with_database(follow, timeout=optional_duration(timeout, "--timeout")):
        raise typer.Exit(code)


async def _pass_all_on(
    changes: AsyncGenerator[Change], shape: str, command: list[str] | None, count: int | None
) -> int:
    """Pass changes on, so many at most; the exit code of the last command."""
    code = 0
    seen = 0
    async with aclosing(changes):
        async for change in changes:
            code = await _pass_on(change, shape, command)
            seen += 1
            if seen == count:
                break
    return code


async def _pass_on(change: Change, shape: str, command: list[str] | None) -> int:
    if command:
        return await _run_command(change, command)
    text = _render(change, shape)
    await output.write_as_read(
        (output.show_json(text) if output.stdout_is_terminal() else text) + "\n"
    )
    return 0


def _render(change: Change, shape: str) -> str:
    from ..store.watch import Deleted
    from .kv import describe_entry

    if isinstance(change, Deleted):
        if shape == "value":
            return ""
        deleted = {"key": change.key, "deleted": True}
        return json.dumps({**deleted, "revision": change.revision} if shape == "json" else deleted)
    if shape == "json":
        return describe_entry(change)
    if shape == "entry":
        return f'{{"key": {json.dumps(change.key)}, "value": {change.text}}}'
    return change.text


async def _run_command(change: Change, command: list[str]) -> int:
    """Run the command on a change; returns its exit code."""
    from ..child_process import run_command
    from ..store.watch import Entry

    facts = {"ASSISTANT_KEY": change.key, "ASSISTANT_REVISION": str(change.revision)}
    text = b""
    if isinstance(change, Entry):
        text = change.text.encode() + b"\n"
    else:
        facts["ASSISTANT_DELETED"] = "1"
    sys.stdout.flush()
    ended = await run_command(command, env={**os.environ, **facts}, stdin=text)
    if ended.signal is not None:
        raise typer.Exit(128 + ended.signal)
    return ended.code


def export(
    prefix: Annotated[
        str, typer.Argument(autocompletion=complete_keys, help="Only keys that start with this.")
    ] = "",
) -> None:
    """Print all keys as lines of {"key": …, "value": …}, in byte order, as of one moment.

    What the program keeps there is among them, such as status_board; when keys expire is not.
    """

    async def stream(database: Database) -> None:
        with interruptible():
            async with aclosing(database.kv.export(prefix)) as blocks:
                async for block in blocks:
                    _write_block(block)

    with_database(lambda database: while_read(stream(database)))


def _write_block(block: bytes) -> None:
    if output.stdout_is_terminal():
        sys.stdout.write(output.show_json(block.decode()))
    else:
        sys.stdout.buffer.write(block)


def import_(
    file: Annotated[str, typer.Argument(help="The file; - is stdin.")] = "-",
    on_conflict: Annotated[
        str, typer.Option(metavar="fail|skip|replace", help="What to do with keys that exist.")
    ] = "replace",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and say what would be written.")
    ] = False,
) -> None:
    """Store lines of {"key": …, "value": …} in one transaction: all or nothing.

    A key that is replaced expires no more.
    """
    if on_conflict not in {"fail", "skip", "replace"}:
        raise UsageError("--on-conflict is fail, skip or replace")
    choice = cast("Literal['fail', 'skip', 'replace']", on_conflict)

    async def store(database: Database) -> int:
        with interruptible():
            return await database.kv.import_lines(_lines(file), on_conflict=choice, dry_run=dry_run)

    written = with_database(store)
    keys = "1 key" if written == 1 else f"{written} keys"
    output.tell(f"{'would write' if dry_run else 'wrote'} {keys}")


def _lines(file: str) -> Iterator[str]:
    try:
        with open_stdin() if file == "-" else Path(file).open("rb") as stream:
            pieces = iter(partial(stream.readline, _PIECE_BYTES), b"")
            for number, line in enumerate(pieces, start=1):
                try:
                    yield line.decode()
                except UnicodeDecodeError:
                    raise BadDataError(
                        f"line {number} is not UTF-8; nothing was imported"
                    ) from None
    except OSError as error:
        raise InputMissingError(f"cannot read {file}: {error.strerror}") from None
