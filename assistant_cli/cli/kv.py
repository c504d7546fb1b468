"""`assistant kv`: single keys."""

from __future__ import annotations

import re
import sys
from typing import IO, TYPE_CHECKING, Annotated

import typer

from ..errors import BadDataError, InputMissingError, NotFoundError, UsageError
from . import output
from .commands import Command, Group
from .session import JsonOption, Key, complete_keys, optional_duration, with_database
from .streams import open_stdin

if TYPE_CHECKING:
    from ..store.watch import Entry

app = typer.Typer(
    help="Durable JSON values that any program can read and write.",
    cls=Group,
    no_args_is_help=True,
    rich_markup_mode=None,
)


def register(root: typer.Typer) -> None:
    """Add the group."""
    from . import kv_streams

    kv_streams.register(app)
    root.add_typer(app, name="kv")


# More than any value or message has, so that what never ends is refused, not collected.
_MOST_READ_BYTES = 4_000_000
_LINE_BREAKING = re.compile(r"[\x00-\x1f\x7f]")


@app.command(cls=Command)
def get(
    key: Key,
    path: Annotated[
        str | None,
        typer.Argument(help="A SQL/JSON path; heartbeat.status is short for $.heartbeat.status."),
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", "-r", help="Print text without quotes.")] = False,
    default: Annotated[
        str | None, typer.Option(metavar="JSON", help="Print this where there is no such value.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print key, value, revision and times as one document.")
    ] = False,
) -> None:
    """Print a value as stored, digit for digit; exit 3 where there is none.

    \b
    assistant kv get status_board heartbeat.status -r
    """
    if as_json:
        if path or raw or default is not None:
            raise UsageError("--json prints the whole entry; leave out PATH, --raw and --default")
        _get_entry(key)
        return
    if default is not None:
        _check_default(default)
    # Raw text needs the plain form of each value, to tell text from anything else.
    pretty = output.stdout_is_terminal() and not raw
    texts = with_database(lambda database: database.kv.get_text(key, path, pretty=pretty))
    if not texts and default is None:
        where = f" at {path}" if path else ""
        raise NotFoundError(f"there is no value of {key!r}{where}")
    for text in texts or [default or ""]:
        _print_value(text, raw)


def _get_entry(key: str) -> None:
    entry = with_database(lambda database: database.kv.get_entry(key))
    if entry is None:
        raise NotFoundError(f"there is no key {key!r}")
    output.print_json_text(describe_entry(entry))


def _check_default(text: str) -> None:
    from ..json_values import check_json

    try:
        check_json(text)
    except BadDataError as error:
        raise BadDataError(f"--default: {error}") from None


def _print_value(text: str, raw: bool) -> None:
    if raw and text.startswith('"'):
        from ..json_values import load_json

        output.print_data(load_json(text))
    else:
        output.print_json_text(text)


def describe_entry(entry: Entry) -> str:
    """An entry as one JSON document, its value digit for digit."""
    import json

    fields = json.dumps(
        {
            "revision": entry.revision,
            "updated_at": output.iso(entry.updated_at),
            "expires_at": output.iso(entry.expires_at),
        }
    )
    return f'{{"key": {json.dumps(entry.key)}, "value": {entry.text}, {fields[1:]}'


_Value = Annotated[
    str | None,
    typer.Argument(
        metavar="[VALUE|-|@FILE]", help="Strict JSON; - or nothing: from stdin.", show_default=False
    ),
]


@app.command(name="set", cls=Command)
def set_(
    key: Key,
    value: _Value = None,
    string: Annotated[bool, typer.Option("--string", help="VALUE is text, not JSON.")] = False,
    create: Annotated[bool, typer.Option("--create", help="Only if the key is missing.")] = False,
    if_revision: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Only if the key has revision N (0: is missing)."),
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Apply VALUE as a JSON Merge Patch (RFC 7396).")
    ] = False,
    ttl: Annotated[
        str | None, typer.Option(metavar="DURATION", help="The key expires after 90s, 30m, 2h.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the key and its new revision.")
    ] = False,
) -> None:
    """Store a value; exit 5 where --create or --if-revision lose.

    \b
    assistant kv set greeting '{"hello": "world"}'
    date | assistant kv set today --string
    """
    if create and (merge or if_revision is not None):
        raise UsageError("--create goes with neither --merge nor --if-revision")
    text = _read_value(value, string)
    expiry = optional_duration(ttl, "--ttl")
    revision = with_database(
        lambda database: database.kv.set_text(
            key, text, create=create, merge=merge, if_revision=if_revision, ttl=expiry
        )
    )
    if as_json:
        output.print_document({"key": key, "revision": revision})


def _read_value(value: str | None, string: bool) -> str:
    from ..json_values import check_json, dump_json

    if value is None and (sys.stdin is None or sys.stdin.isatty()):
        raise UsageError("VALUE is missing; give it, or - for stdin, or @FILE")
    # The newline that ends a line in the shell is not part of the text.
    if value is None or value == "-":
        value = read_stdin().removesuffix("\n")
    elif value.startswith("@"):
        value = read_file(value[1:]).removesuffix("\n")
    if string:
        return dump_json(value)
    try:
        check_json(value)
    except BadDataError as error:
        hint = "; for text, use --string" if str(error).startswith("not JSON") else ""
        raise BadDataError(f"VALUE is refused: {error}{hint}") from None
    return value


def read_stdin() -> str:
    """All of stdin as UTF-8.

    Raises:
        BadDataError: it is not UTF-8, or far larger than any value or message.
        InputMissingError: it is closed, or cannot be read.
    """
    try:
        with open_stdin() as stream:
            return _read_all(stream, "stdin")
    except OSError as error:
        raise InputMissingError(f"cannot read stdin: {error.strerror}") from None


def read_file(name: str) -> str:
    """All of a file as UTF-8.

    Raises:
        BadDataError: it is not UTF-8, or far larger than any value.
        InputMissingError: it is missing, or cannot be read.
    """
    from pathlib import Path

    try:
        with Path(name).open("rb") as file:
            return _read_all(file, name)
    except OSError as error:
        raise InputMissingError(f"cannot read {name}: {error.strerror}") from None


def _read_all(stream: IO[bytes], name: str) -> str:
    data = stream.read(_MOST_READ_BYTES + 1)
    if len(data) > _MOST_READ_BYTES:
        raise BadDataError(f"{name} has more than {_MOST_READ_BYTES:,} bytes; that is too large")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise BadDataError(f"{name} is not UTF-8: {error.reason} at byte {error.start}") from None


@app.command(cls=Command)
def rm(
    keys: Annotated[list[str], typer.Argument(autocompletion=complete_keys, help="The keys.")],
) -> None:
    """Delete keys, all or none; exit 3 where one is missing."""
    with_database(lambda database: database.kv.delete(*keys))


@app.command(cls=Command)
def exists(key: Key) -> None:
    """Exit 0 if the key exists, 3 if not; print nothing."""
    if with_database(lambda database: database.kv.get_entry(key)) is None:
        raise typer.Exit(NotFoundError.exit_code)


@app.command(cls=Command)
def incr(
    key: Key,
    by: Annotated[str, typer.Argument(help="A decimal number, also negative.")] = "1",
) -> None:
    """Add to a number, exactly and atomically, and print the sum; a missing key counts as 0."""
    output.print_data(with_database(lambda database: database.kv.increment(key, by)))


@app.command(cls=Command)
def ls(
    prefix: Annotated[
        str, typer.Argument(autocompletion=complete_keys, help="Only keys that start with this.")
    ] = "",
    values: Annotated[bool, typer.Option("--values", help="Print KEY, tab, value.")] = False,
    long: Annotated[
        bool,
        typer.Option("--long", "-l", help="Print key, revision, update and expiry time, value."),
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many keys.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List keys in byte order, one a line."""
    if values + long + as_json > 1:
        raise UsageError("use one of --values, --long and --json")
    if not (values or long or as_json):
        keys = with_database(lambda database: database.kv.list_keys(prefix, limit))
        sys.stdout.write("".join(f"{_show_key(key)}\n" for key in keys))
        return
    entries = with_database(lambda database: database.kv.list_entries(prefix, limit))
    _print_entries(entries, long, as_json)


def _print_entries(entries: list[Entry], long: bool, as_json: bool) -> None:
    if as_json:
        output.print_json_text(f"[{', '.join(map(describe_entry, entries))}]")
        return
    lines = []
    for entry in entries:
        text = output.show_json(entry.text) if output.stdout_is_terminal() else entry.text
        times = (output.iso(entry.updated_at), output.iso(entry.expires_at) or "-")
        head = (str(entry.revision), *times) if long else ()
        lines.append("\t".join([_show_key(entry.key), *head, text]) + "\n")
    sys.stdout.write("".join(lines))


def _show_key(key: str) -> str:
    """A key on a line of its own: in a pipe as it is, unless plain SQL put a control into it."""
    if output.stdout_is_terminal() or _LINE_BREAKING.search(key):
        return output.show_line(key)
    return key
