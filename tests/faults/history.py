"""What clients were told: every call and its answer, one JSON line each.

A client writes its own file, so that a kill leaves a call without an answer: it may have
happened, at any time after the call, or never. Times are of the host's monotonic clock.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from assistant_cli.errors import AssistantError, DatabaseUnreachableError

T = TypeVar("T")


@dataclass(frozen=True)
class Operation:
    """A call and what became of it.

    Attributes:
        client: the process that made it.
        called_at: nanoseconds; `answered_at` is None where the outcome is not known.
        outcome: `refused` means that it certainly did not happen; `answer` is then the error.
    """

    client: str
    name: str
    arguments: dict[str, Any]
    called_at: int
    answered_at: int | None = None
    outcome: Literal["done", "refused", "unknown"] = "unknown"
    answer: Any = None


@dataclass(frozen=True)
class Delivery:
    """What a watch delivered; `value` is None where the key was deleted."""

    client: str
    watch: int
    key: str
    value: Any
    revision: int


@dataclass(frozen=True)
class History:
    operations: list[Operation]
    deliveries: list[Delivery]


class Recorder:
    """Appends to the history of one client."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._calls = 0

    async def call(self, name: str, work: Callable[[], Awaitable[T]], **arguments: Any) -> T | None:
        """Make a call and record it; None where it was refused.

        Raises:
            DatabaseUnreachableError: its outcome is not known.
        """
        self._calls += 1
        number = self._calls
        self._write(call=number, name=name, arguments=arguments)
        try:
            answer = await work()
        except DatabaseUnreachableError:
            raise
        except AssistantError as error:
            self._write(answer=number, outcome="refused", value=type(error).__name__)
            return None
        self._write(answer=number, outcome="done", value=answer)
        return answer

    def deliver(self, watch: int, key: str, value: Any, revision: int) -> None:
        """Record what a watch delivered."""
        self._write(watch=watch, key=key, value=value, revision=revision)

    def _write(self, **line: Any) -> None:
        text = json.dumps({"at": time.monotonic_ns(), **line}, default=str)
        os.write(self._file, text.encode() + b"\n")


def read_history(folder: Path) -> History:
    """The history of all clients that wrote into a folder."""
    operations: list[Operation] = []
    deliveries: list[Delivery] = []
    for path in sorted(folder.glob("*.jsonl")):
        lines = list(_lines(path))
        answers = {line["answer"]: line for line in lines if "answer" in line}
        operations += [_operation(path.stem, line, answers) for line in lines if "call" in line]
        deliveries += [
            Delivery(path.stem, line["watch"], line["key"], line["value"], line["revision"])
            for line in lines
            if "watch" in line
        ]
    return History(operations, deliveries)


def _operation(client: str, line: dict[str, Any], answers: dict[int, Any]) -> Operation:
    answer = answers.get(line["call"])
    made = (client, line["name"], line["arguments"], line["at"])
    if answer is None:
        return Operation(*made)
    return Operation(*made, answer["at"], answer["outcome"], answer["value"])


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    # A kill may have torn the last line.
    for line in path.read_text("utf-8").split("\n")[:-1]:
        yield json.loads(line)
