"""A pseudo terminal to run commands on, and what they sent to it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import termios
import threading
import tty

from .conftest import CommandLine, eventually

_SEQUENCES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """A command whose stdout is a terminal; what it sends is collected as it comes.

    `more`: its other streams that are this terminal, of `stdin` and `stderr`.
    """

    def __init__(
        self,
        command_line: CommandLine,
        *arguments: str,
        columns: int = 400,
        more: tuple[str, ...] = (),
    ) -> None:
        self._master, slave = pty.openpty()
        tty.setraw(slave)
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        streams = dict.fromkeys(("stdout", *more), slave)
        self.process = command_line.start(*arguments, **streams)
        os.close(slave)
        self.errors = ""
        self._received = bytearray()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    @property
    def text(self) -> str:
        """All that was sent so far."""
        return self._received.decode(errors="replace")

    @property
    def plain(self) -> str:
        """All that was sent so far, without colors and movements of the cursor."""
        return _SEQUENCES.sub("", self.text)

    def type(self, text: str) -> None:
        """Send keys to a command whose stdin it is."""
        os.write(self._master, text.encode())

    def wait_for(self, text: str) -> None:
        """Wait until a text was sent, and forget all up to its end."""
        eventually(lambda: text in self.plain, repr(text))
        self._received.clear()

    def finish(self) -> int:
        """Wait for the end of the command; returns its exit code."""
        _, errors = self.process.communicate(timeout=60)
        self.errors = errors or ""
        self._reader.join(timeout=60)
        os.close(self._master)
        return self.process.returncode

    def finish_plain(self) -> str:
        """Wait for the end of a command that succeeds; returns the text it showed."""
        assert self.finish() == 0, self.errors
        return self.plain

    def _read(self) -> None:
        # Linux answers with an error once the other side is closed, others with nothing.
        try:
            while block := os.read(self._master, 65536):
                self._received += block
        except OSError:
            pass


def run_on_terminal(command_line: CommandLine, *arguments: str, columns: int = 400) -> str:
    """Run a command to its end; returns what it sent to its terminal."""
    terminal = Terminal(command_line, *arguments, columns=columns)
    code = terminal.finish()
    assert code == 0, terminal.errors
    return terminal.text
