"""`assistant memory`: what the agents remember, for their user to read and to correct."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import (
    AssistantError,
    BadDataError,
    ConfigurationError,
    ConflictError,
    NotFoundError,
    UsageError,
)
from . import output
from .commands import Command, Group
from .session import JsonOption, at_ctrl_c, with_database

if TYPE_CHECKING:
    from ..store.watch import Entry

app = typer.Typer(
    cls=Group, help="What the agents remember.", no_args_is_help=True, rich_markup_mode=None
)


def register(root: typer.Typer) -> None:
    """Add the group."""
    root.add_typer(app, name="memory")


Name = Annotated[
    str, typer.Argument(help="soul, user, instructions, or a key such as notes/…, diary/….")
]


@app.command(cls=Command)
def show(
    name: Annotated[str | None, typer.Argument(help="Only this text.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Print what is remembered, or one text of it; exit 3 where that is none."""
    from ..store.memory import memory_key, read_memory

    entries = with_database(read_memory)
    if name is not None:
        entries = [entry for entry in entries if entry.key == memory_key(name)]
        if not entries:
            raise NotFoundError(f"nothing is remembered as {name!r}; `assistant memory show` lists")
    _print(entries, as_json, alone=name is not None)


@app.command(cls=Command)
def search(
    query: Annotated[str, typer.Argument(help="Words that must all be there.")],
    as_json: JsonOption = False,
) -> None:
    """Print what contains all the words, in any case; exit 3 where nothing does."""
    from ..store.memory import search_memory

    entries = with_database(lambda database: search_memory(database, query))
    if not entries:
        raise NotFoundError(f"nothing that is remembered contains {query!r}")
    _print(entries, as_json)


@app.command(cls=Command)
def edit(name: Name) -> None:
    """Edit a text in $VISUAL or $EDITOR; exit 5 where it was changed meanwhile.

    \b
    assistant memory edit user
    """
    from ..store.memory import memory_key

    key = memory_key(name)
    entry = with_database(lambda database: database.kv.get_entry(key))
    if entry and not isinstance(entry.value, str):
        raise BadDataError(f"{key} holds no text; use `assistant kv set {key}`")
    before = entry.plain if entry else ""
    with _file_with(before) as file:
        after = _edited(file)
        if after == before:
            output.tell("nothing was changed")
            return
        revision = entry.revision if entry else 0
        try:
            with_database(lambda database: database.kv.set(key, after, if_revision=revision))
        except ConflictError:
            raise ConflictError(f"{key} was changed meanwhile") from None


def _print(entries: list[Entry], as_json: bool, alone: bool = False) -> None:
    if as_json:
        texts = [{"key": entry.key, "text": entry.plain} for entry in entries]
        output.print_document({"schema": 1, "memory": texts})
    elif alone:
        output.print_data(entries[0].plain)
    else:
        output.print_rows((entry.key, entry.plain) for entry in entries)


@contextmanager
def _file_with(text: str) -> Iterator[Path]:
    """A file to edit a text in; it stays where what was made of it could not be stored."""
    before = f"{text}\n".encode() if text else b""
    handle, name = tempfile.mkstemp(prefix="assistant-memory-", suffix=".txt")
    with os.fdopen(handle, "wb") as written:
        written.write(before)
    file = Path(name)
    try:
        yield file
    except BaseException as error:
        kept = f"your text is kept in {file}"
        if file.is_file() and file.read_bytes() == before:
            file.unlink()
        elif file.exists() and isinstance(error, AssistantError):
            raise type(error)(f"{error}; {kept}") from None
        elif file.exists():
            output.tell(kept)
        raise
    file.unlink(missing_ok=True)


def _edited(file: Path) -> str:
    """What the user's editor makes of a file."""
    from .kv import read_file

    editor = (os.environ.get("VISUAL") or os.environ.get("EDITOR") or "").strip()
    if not editor:
        raise UsageError("set VISUAL or EDITOR to your editor, or use `assistant kv set --string`")
    try:
        # Ctrl-C reaches both, and to many an editor it does not mean to end.
        with at_ctrl_c(lambda *_: None):
            done = subprocess.run([*shlex.split(editor), str(file)], check=False)  # noqa: S603
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigurationError(f"cannot run the editor {editor!r}: {reason}") from None
    if done.returncode == -signal.SIGINT:
        raise KeyboardInterrupt
    if done.returncode:
        raise ConfigurationError(f"the editor {editor!r} ended with {done.returncode}")
    return read_file(str(file)).removesuffix("\n")
