"""`assistant kv watch`, `export` and `import`: streams of keys."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from ..errors import BadDataError, InputMissingError, UsageError
from . import output
from .session import complete_keys, duration, with_database

if TYPE_CHECKING:
    from ..store.database import Database
    from ..store.watch import Change


def register(app: typer.Typer) -> None:
    """Add the commands to the group `kv`."""
    app.command(context_settings={"allow_interspersed_args": True})(watch)
    app.command()(export)
    app.command(name="import")(import_)


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
    timeout: Annotated[
        str | None, typer.Option(metavar="DURATION", help="Exit 124 after this time.")
    ] = None,
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
    if prefix is not None and key is not None:
        # What stood before `--` was parsed as KEY: with --prefix it is part of the command.
        command = [key, *(command or [])]
        key = None
    if key is None and prefix is None:
        raise UsageError("give a key, or --prefix")
    limit = duration(timeout) if timeout is not None else None
    shape = "json" if as_json else "entry" if key is None else "value"

    async def follow(database: Database) -> int:
        from ..store.watch import Entry

        code = 0
        seen = 0
        initial = await _initial_revisions(database, key, prefix or "") if no_initial else {}
        changes = database.kv.watch(key, prefix=prefix or "")
        async with aclosing(changes):
            async for change in changes:
                if isinstance(change, Entry) and initial.get(change.key) == change.revision:
                    continue
                code = await _pass_on(change, shape, command)
                seen += 1
                if seen == count:
                    break
        return code

    code = with_database(follow, timeout=limit)
    if code:
        raise typer.Exit(code)


async def _initial_revisions(database: Database, key: str | None, prefix: str) -> dict[str, int]:
    if key is None:
        entries = await database.kv.list_entries(prefix)
    else:
        entry = await database.kv.get_entry(key)
        entries = [entry] if entry else []
    return {entry.key: entry.revision for entry in entries}


async def _pass_on(change: Change, shape: str, command: list[str] | None) -> int:
    if command:
        return await _run_command(change, command)
    text = _render(change, shape)
    sys.stdout.write((output.show_json(text) if output.stdout_is_terminal() else text) + "\n")
    sys.stdout.flush()
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
    return await run_command(command, env={**os.environ, **facts}, stdin=text)


def export(
    prefix: Annotated[
        str, typer.Argument(autocompletion=complete_keys, help="Only keys that start with this.")
    ] = "",
) -> None:
    """Print all keys as lines of {"key": …, "value": …}, in byte order, as of one moment."""

    async def stream(database: Database) -> None:
        async with aclosing(database.kv.export(prefix)) as blocks:
            async for block in blocks:
                if output.stdout_is_terminal():
                    sys.stdout.write(output.show_json(block.decode()).replace("\\n", "\n"))
                else:
                    sys.stdout.buffer.write(block)

    with_database(stream)


def import_(
    file: Annotated[str, typer.Argument(help="The file; - is stdin.")] = "-",
    on_conflict: Annotated[
        str, typer.Option(metavar="fail|skip|replace", help="What to do with keys that exist.")
    ] = "replace",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and say what would be written.")
    ] = False,
) -> None:
    """Store lines of {"key": …, "value": …} in one transaction: all or nothing."""
    if on_conflict not in {"fail", "skip", "replace"}:
        raise UsageError("--on-conflict is fail, skip or replace")
    choice = cast("Literal['fail', 'skip', 'replace']", on_conflict)

    async def store(database: Database) -> int:
        return await database.kv.import_lines(_lines(file), on_conflict=choice, dry_run=dry_run)

    written = with_database(store)
    output.tell(f"{'would write' if dry_run else 'wrote'} {written} keys")


def _lines(file: str) -> Iterator[str]:
    try:
        with open(0 if file == "-" else file, "rb", closefd=file != "-") as stream:
            for number, line in enumerate(stream, start=1):
                try:
                    yield line.decode()
                except UnicodeDecodeError:
                    raise BadDataError(
                        f"line {number} is not UTF-8; nothing was imported"
                    ) from None
    except OSError as error:
        raise InputMissingError(f"cannot read {file}: {error.strerror}") from None
