"""The standard streams, whatever the program is started with."""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING

from ..errors import InputMissingError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class _Waiting(io.FileIO):
    """A file that is waited for where it is set not to block, and can take or give nothing yet."""

    def write(self, data: Any) -> int:
        return self._wait(lambda: super(_Waiting, self).write(data), writing=True)

    def readinto(self, buffer: Any) -> int:
        return self._wait(lambda: super(_Waiting, self).readinto(buffer), writing=False)

    def _wait(self, attempt: Callable[[], int | None], *, writing: bool) -> int:
        import select

        while (count := attempt()) is None:
            select.select([] if writing else [self], [self] if writing else [], [])
        return count


def prepare_streams() -> None:
    """Replace stdout and stderr by streams that write UTF-8 whatever the locale.

    One that is closed becomes one that cannot be written to, and fails as one on a full disk does.
    Both are buffered whatever PYTHONUNBUFFERED says: where a disk takes a part only, Python's own
    unbuffered stream drops the rest without an error.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        # The number of a closed stream is taken, or the next file or socket would get it.
        number = os.open(os.devnull, os.O_RDONLY) if stream is None else stream.fileno()
        buffer = io.BufferedWriter(_Waiting(number, "w", closefd=False))
        by_line = name == "stderr" or os.isatty(number)
        text = io.TextIOWrapper(
            buffer, encoding="utf-8", errors="backslashreplace", line_buffering=by_line
        )
        setattr(sys, name, text)


def open_stdin() -> io.BufferedReader:
    """The bytes of stdin.

    Raises:
        InputMissingError: it is closed.
    """
    if sys.stdin is None:
        raise InputMissingError("stdin is closed")
    return io.BufferedReader(_Waiting(0, closefd=False))
