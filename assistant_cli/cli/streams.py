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
    """A file that is waited for; one that does not block would take or give nothing instead."""

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
    """Values are UTF-8 whatever the locale; a closed stream takes nothing, as a full one.

    What is written is buffered whatever PYTHONUNBUFFERED says: Python's own unbuffered stream
    forgets what a disk that is soon full does not take.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        # In place of what is closed, or the next file or socket would be.
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
