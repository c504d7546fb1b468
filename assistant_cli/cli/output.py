"""What commands print: data on stdout, everything else on stderr.

What comes from the database is data. On a terminal, what would steer it (control characters,
escapes, bidi overrides) is shown instead of sent; in a pipe, JSON goes out as it is stored.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from decimal import Decimal

# C0 and C1 controls, DEL, zero-width and bidi formatting, line separators, fillers, tags, half
# surrogates.
_UNSAFE = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f"
    "\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff0-\ufffb\ud800-\udfff"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e007f"
)
_STEERING = re.compile(f"[{_UNSAFE}]")
_STEERING_IN_LINE = re.compile(f"[\t\n{_UNSAFE}]")
# More than any language puts on one letter. They would heap up over other lines, and hide text.
_MOST_MARKS = 8
_MARKS = {"Mn", "Me", "Cf"}
_PERHAPS_HEAPS = re.compile(f"[^\x00-\u02ff]{{{_MOST_MARKS + 1},}}")

_RETRY_SECONDS = 0.05

# As Rich has it, which draws nothing again on them.
_CANNOT_REDRAW = {"dumb", "unknown"}

_color = "auto"
_telling_json = False


def set_color(choice: str) -> None:
    """Set `--color`: `auto`, `always` or `never`."""
    global _color  # noqa: PLW0603 (an option of the whole process, set once)
    _color = choice


def stdout_is_terminal() -> bool:
    """Whether a person reads stdout."""
    return sys.stdout.isatty()


def can_redraw() -> bool:
    """Whether stdout is a terminal whose lines can be drawn again."""
    return stdout_is_terminal() and os.environ.get("TERM", "").lower() not in _CANNOT_REDRAW


def use_color() -> bool:
    """Whether to color stdout: as `--color` says, else on a terminal without NO_COLOR."""
    if _color != "auto":
        return _color == "always"
    return can_redraw() and not os.environ.get("NO_COLOR")


def show_line(text: str) -> str:
    """Text for one line of a terminal: what would steer it is written out, such as `\\x1b`."""
    return _write_out(_STEERING_IN_LINE, text, _escape)


def show_text(text: str) -> str:
    """Text for a terminal, with its own lines and tabs."""
    return _write_out(_STEERING, text, _escape)


def show_json(text: str) -> str:
    """JSON text for a terminal: still JSON, with what would steer it as `\\u001b`."""
    return _write_out(_STEERING, text, _escape_json)


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def _escape_json(character: str) -> str:
    return json.dumps(character)[1:-1]


def _write_out(steering: re.Pattern[str], text: str, escape: Callable[[str], str]) -> str:
    """Write out what would steer a terminal, and marks that heap up."""
    steady = steering.sub(lambda match: escape(match[0]), text)
    return _PERHAPS_HEAPS.sub(lambda match: _write_out_heaps(match[0], escape), steady)


def _write_out_heaps(text: str, escape: Callable[[str], str]) -> str:
    """Write out the marks without a width of their own that follow too many of their kind."""
    from unicodedata import category

    parts = []
    marks = 0
    for character in text:
        marks = marks + 1 if category(character) in _MARKS else 0
        parts.append(escape(character) if marks > _MOST_MARKS else character)
    return "".join(parts)


def print_data(text: str) -> None:
    """Write data and a newline to stdout, escaped only where a person would read it."""
    sys.stdout.write((show_text(text) if stdout_is_terminal() else text) + "\n")


async def write_as_read(text: str) -> None:
    """Write to stdout no faster than it is read, and let everything else go on meanwhile."""
    import asyncio
    import select

    sys.stdout.flush()
    descriptor = sys.stdout.fileno()
    data = text.encode(sys.stdout.encoding, sys.stdout.errors or "strict")
    while data:
        while not select.select([], [descriptor], [], 0)[1]:  # noqa: ASYNC110 (no file is awaited)
            await asyncio.sleep(_RETRY_SECONDS)
        # As much as a pipe takes at once if it takes anything.
        data = data[os.write(descriptor, data[: select.PIPE_BUF]) :]


class GrowingText:
    """A text that is printed as it comes where a person reads it, and as a whole elsewhere."""

    def __init__(self) -> None:
        self._shown = ""

    def show(self, text: str) -> None:
        """Show what has come so far."""
        if not stdout_is_terminal():
            return
        if not text.startswith(self._shown):
            # Another attempt, or another request of the same turn, began anew.
            sys.stdout.write("\n")
            self._shown = ""
        sys.stdout.write(show_text(text)[len(show_text(self._shown)) :])
        sys.stdout.flush()
        self._shown = text

    def finish(self, text: str) -> None:
        """Show the rest of the whole text, and end the line."""
        self.show(text)
        rest = "" if stdout_is_terminal() else text
        sys.stdout.write(f"{rest}\n")


def print_json_text(text: str) -> None:
    """Write JSON text and a newline to stdout."""
    sys.stdout.write((show_json(text) if stdout_is_terminal() else text) + "\n")


def print_document(document: Any) -> None:
    """Write one JSON document on one line to stdout, all ASCII."""
    sys.stdout.write(format_document(document))
    sys.stdout.flush()


def format_document(document: Any) -> str:
    """A JSON document as a line, all ASCII."""
    return json.dumps(document) + "\n"


def print_rows(rows: Iterable[Sequence[object]]) -> None:
    """Write rows to stdout: cells separated by tabs, or in columns on a terminal."""
    sys.stdout.write(format_rows(rows))


def format_rows(rows: Iterable[Sequence[object]]) -> str:
    """Rows as lines: cells separated by tabs, or in columns, and local times, on a terminal."""
    table = [[_cell(cell) for cell in row] for row in rows]
    if not stdout_is_terminal():
        return "".join("\t".join(row) + "\n" for row in table)
    # What is wider than a terminal moves the columns behind it in its own row only.
    widths = [min(200, max(map(len, column))) for column in zip_longest(*table, fillvalue="")]
    padded = ([c.ljust(w) for c, w in zip(row, widths, strict=False)] for row in table)
    return "".join("  ".join(row).rstrip() + "\n" for row in padded)


def _cell(value: object) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case datetime():
            return local_time(value) if stdout_is_terminal() else iso(value) or ""
        case _:
            return show_line(str(value))


def tell_as_json() -> None:
    """Have `tell` write JSON from now on, an object a line as the log does."""
    global _telling_json  # noqa: PLW0603 (an option of the whole process, set once)
    _telling_json = True


def tell(text: str, level: str = "INFO") -> None:
    """Write a line for people to stderr."""
    line = f"assistant: {show_line(text)}"
    if _telling_json:
        from .logs import json_line

        line = json_line(datetime.now(UTC), level, text)
    write_to_stderr(f"{line}\n")


def write_to_stderr(text: str) -> None:
    """Write to stderr; one that is full, or that nobody reads, changes no exit code."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        silence(sys.stderr)


def silence(stream: TextIO) -> None:
    """Drop what is buffered for a stream that takes no more, or it would fail again at the exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def iso(moment: datetime | None) -> str | None:
    """A time as documents carry it: UTC, such as `2026-11-23T10:00:00Z`."""
    if moment is None:
        return None
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def dollars(amount: Decimal | None) -> float | None:
    """An amount as documents carry it."""
    return None if amount is None else float(amount)


def local_time(moment: datetime) -> str:
    """A time for people: to the second, in the host's time zone."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def ago(moment: datetime | None, now: datetime) -> str:
    """How long ago a time was, short."""
    from ..durations import format_duration

    return "-" if moment is None else format_duration(max(timedelta(0), now - moment))
