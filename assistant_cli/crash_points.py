"""Named points at which a test lets the process die, as `kill -9` would.

`ASSISTANT_CRASH_AT=claim.before` dies the first time that point is reached, `claim.before:3` the
third time. `.before` and `.after` mean before and after a commit, or whatever else makes a step
visible to others. Only tests set the variable; without it, reaching a point does nothing.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from itertools import count


def _pass_by(_: str) -> None:
    """Go on."""


def _die_at(wanted: str) -> Callable[[str], None]:
    point, _, occasion = wanted.partition(":")
    occasions = count(1)

    def reach(name: str) -> None:
        if name == point and next(occasions) >= int(occasion or 1):
            os.kill(os.getpid(), signal.SIGKILL)

    return reach


_wanted = os.environ.get("ASSISTANT_CRASH_AT")
reach: Callable[[str], None] = _die_at(_wanted) if _wanted else _pass_by
