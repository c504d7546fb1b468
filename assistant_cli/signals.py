"""Signals, handled by the event loop for as long as something is done."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager


def unless_ignored(*numbers: signal.Signals) -> list[signal.Signals]:
    """Those of the signals that this process was not started to ignore, as nohup has it do."""
    return [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]


@contextmanager
def handling(numbers: Iterable[int], handle: Callable[[int], None]) -> Iterator[None]:
    """Have a function called with the number of each of these signals that comes meanwhile."""
    loop = asyncio.get_running_loop()
    handled = list(numbers)
    for number in handled:
        loop.add_signal_handler(number, handle, number)
    try:
        yield
    finally:
        for number in handled:
            loop.remove_signal_handler(number)
