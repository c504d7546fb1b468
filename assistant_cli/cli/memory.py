"""`assistant memory`: what the agents remember, for their user to read and to correct."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import AssistantError, ConfigurationError, ConflictError, NotFoundError, UsageError
from . import output
from .commands import Command, Group
from .session import JsonOption, with_database

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
    """Print what is remembered, or one text of it; exit 3 where there is none."""
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
    before = entry.plain if entry else ""
    after = _edited(before)
    if after == before:
        output.tell("nothing was changed")
        return
    revision = entry.revision if entry else 0
    try:
        with_database(lambda database: database.kv.set(key, after, if_revision=revision))
    except ConflictError:
        kept = _keep(after)
        raise ConflictError(f"{key} was changed meanwhile; your text is kept in {kept}") from None
    except AssistantError as error:
        raise type(error)(f"{error}; your text is kept in {_keep(after)}") from None


def _print(entries: list[Entry], as_json: bool, alone: bool = False) -> None:
    if as_json:
        texts = [{"key": entry.key, "text": entry.plain} for entry in entries]
        output.print_document({"schema": 1, "memory": texts})
    elif alone:
        output.print_data(entries[0].plain)
    else:
        output.print_rows((entry.key, entry.plain) for entry in entries)


def _edited(text: str) -> str:
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    if not editor:
        raise UsageError("set VISUAL or EDITOR to your editor, or use `assistant kv set --string`")
    file = _keep(text)
    try:
        done = subprocess.run([*shlex.split(editor), str(file)], check=False)  # noqa: S603
        if done.returncode:
            raise ConfigurationError(f"the editor {editor!r} ended with {done.returncode}")
        return file.read_text("utf-8").removesuffix("\n")
    except OSError as error:
        raise ConfigurationError(f"cannot run the editor {editor!r}: {error.strerror}") from None
    finally:
        file.unlink(missing_ok=True)


def _keep(text: str) -> Path:
    handle, name = tempfile.mkstemp(prefix="assistant-memory-", suffix=".txt")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(f"{text}\n" if text else "")
    return Path(name)
