"""The desk of a turn: what its model may call, and the record of all it does."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

from ..errors import AssistantError
from ..messages import Effect, Turn, Usage
from ..models import StepKind, Tool
from ..patience import patiently
from ..store import turns
from .host import Host
from .tools import Tools

_SHOW_SECONDS = 0.1
_MAX_RESULT_CHARACTERS = 20_000
_LIKE_A_MARK = re.compile(r"<(?=\W{0,20}data)", re.IGNORECASE)


class TurnDesk:
    """Keeps every step on the turn before anything is done about it.

    What tools change is kept as effects, in one transaction with the reply: a turn that fails
    or is done again has changed nothing.
    """

    def __init__(self, host: Host, turn: Turn) -> None:
        self._host = host
        self._turn = turn
        self._tools = Tools(host, turn)
        self._said = ""
        self._shown_at = float("-inf")

    @property
    def tools(self) -> Sequence[Tool]:
        return self._tools.all()

    @property
    def effects(self) -> Sequence[Effect]:
        """What the tools that were called will change."""
        return self._tools.effects

    async def record(self, kind: StepKind, content: Any, usage: Usage | None = None) -> None:
        host = self._host
        self._said = ""
        await patiently(
            lambda: turns.add_step(
                host.database, self._turn, host.lease.token, kind, content, usage
            )
        )

    async def said(self, text: str) -> None:
        self._said += text
        now = asyncio.get_running_loop().time()
        if now >= self._shown_at + _SHOW_SECONDS:
            self._shown_at = now
            # Only those who watch miss it where it fails: the turn goes on.
            with suppress(AssistantError):
                await turns.show_partial_reply(self._host.database, self._turn, self._said)

    async def call(self, name: str, arguments: str, work: Callable[[], Awaitable[str]]) -> str:
        await self.record("tool_call", {"tool": name, "arguments": _parsed(arguments)})
        refused = False
        try:
            result = await patiently(work)
        except AssistantError as error:
            refused, result = True, f"refused: {error}"
        await self.record("tool_result", {"tool": name, "refused": refused, "result": result})
        return as_data(f"tool {name}", result[:_MAX_RESULT_CHARACTERS])


def as_data(source: str, text: str) -> str:
    """Text from elsewhere, marked so that a model can tell it from instructions.

    The mark bears a code that nobody could know when the text was written, so that nothing in
    it ends the mark; what only looks like an end is written `<\\/data`.
    """
    code = secrets.token_hex(4)
    inside = _LIKE_A_MARK.sub(r"<\\", text)
    return f"<data {code} from={json.dumps(source)}>\n{inside}\n</data {code}>"


def _parsed(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments
