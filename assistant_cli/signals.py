"""Signals, handled by the event loop for as long as something is done."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager


def unless_ignored(*numbers: signal.Signals) -> list[signal.Signals]:
    """The signals without those that this process ignores from its start, as under nohup."""
    return [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]


@contextmanager
def handling(numbers: Iterable[int], handle: Callable[[int], None]) -> Iterator[None]:
    """Call a function, in the event loop, with the number of each of these signals that comes."""
    loop = asyncio.get_running_loop()
    handled = list(numbers)
    for number in handled:
        loop.add_signal_handler(number, handle, number)
    try:
        yield
    finally:
        for number in handled:
            loop.remove_signal_handler(number)
