"""Is there one order of the calls on a key that explains all answers?"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .history import Operation

_STEPS = 300_000


@dataclass(frozen=True)
class _State:
    """A key; a value of None is a missing key, a revision of None one that nobody knows.

    `floor` is the largest revision that is known: each write must get a larger one.
    """

    value: Any = None
    revision: int | None = None
    floor: int = 0

    def written(self, value: Any, revision: int | None) -> _State | None:
        if revision is not None and revision <= self.floor:
            return None
        return _State(value, revision, revision or self.floor)

    def read(self, answer: Any) -> _State | None:
        if answer is None or self.value is None:
            return self if answer is None and self.value is None else None
        value, revision = answer
        if value != self.value:
            return None
        if self.revision is None:
            return self.written(value, revision)
        return self if self.revision == revision else None


def is_linearizable(operations: Iterable[Operation]) -> bool | None:
    """Whether one order of the calls on a key explains all answers; None: too many steps.

    The search of Wing and Gong with the memory of Lowe: a call may come next if no call that
    is left out had its answer before it was made. One with an unknown outcome may come at any
    time after it was made, or never; reads of that kind say nothing.
    """
    calls = sorted(
        (o for o in operations if o.outcome != "unknown" or o.name != "get"),
        key=lambda call: call.called_at,
    )
    ends = [math.inf if c.answered_at is None else c.answered_at for c in calls]
    needed = sum(1 << i for i, c in enumerate(calls) if c.outcome != "unknown")
    # Those of unknown outcome are tried last, as most of them explain nothing.
    order = sorted(range(len(calls)), key=lambda i: (not needed >> i & 1, i), reverse=True)
    reached = {(0, _State())}
    stack = [(0, _State())]
    while stack:
        if len(reached) > _STEPS:
            return None
        done, state = stack.pop()
        if done & needed == needed:
            return True
        horizon = min(ends[i] for i in range(len(calls)) if not done >> i & 1)
        for i in order:
            if done >> i & 1 or calls[i].called_at > horizon:
                continue
            following = _apply(calls[i], state)
            node = (done | 1 << i, following)
            if following is not None and node not in reached:
                reached.add((node[0], following))
                stack.append((node[0], following))
    return False


def _apply(call: Operation, state: _State) -> _State | None:
    """The state after a call; None where the call cannot have had its answer, or no effect."""
    arguments, answer = call.arguments, call.answer
    if call.name == "get":
        return state.read(answer)
    if call.name == "increment":
        total = (state.value or 0) + arguments["by"]
        return state.written(total, None) if answer in (None, str(total)) else None
    fits = _fits(call, state)
    if call.outcome == "refused":
        return None if fits else state
    if fits is False:
        return None
    if call.name == "delete":
        return _State(floor=state.floor)
    return state.written(arguments["value"], answer)


def _fits(call: Operation, state: _State) -> bool | None:
    """Whether a write may happen in a state; None where it may or may not."""
    exists = state.value is not None
    match call.name:
        case "set":
            return True
        case "create":
            return not exists
        case "delete":
            return exists
        case _:
            wanted = call.arguments["if_revision"]
            if exists and state.revision is None and wanted > state.floor:
                return None
            return exists and state.revision == wanted
