"""What a language model may do by itself: safe by construction, whatever talks it into it.

A tool reads, or leaves an effect that is kept together with the reply. It reads and writes memory
and keys under its agent's own prefix only, and reads the board; it never writes the board, another
agent's keys, or in somebody else's name.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from ..errors import BadDataError
from ..json_values import check_key, dump_json
from ..messages import MAIN_CONVERSATION, Effect, Remember, Remind, Say, SetKey, Turn
from ..models import Tool
from ..store.board import read_formatted
from ..store.reminders import list_pending
from . import HEARTBEAT
from .commands import parse_when
from .loop import Host

_MAX_FOUND = 20
_MAX_EFFECTS = 20


class Tools:
    """The tools of one turn. Their docstrings are what the model is told."""

    def __init__(self, host: Host, turn: Turn) -> None:
        self._host = host
        self._turn = turn
        self.effects: list[Effect] = []

    def all(self) -> Sequence[Tool]:
        """The tools of the turn's agent."""
        common: list[Tool] = [
            self.remember,
            self.search_memory,
            self.read_memory,
            self.write_memory,
            self.get_key,
            self.set_key,
            self.read_board,
            self.remind,
            self.list_reminders,
        ]
        return [*common, self.speak] if self._turn.agent == HEARTBEAT else common

    async def remember(self, text: str) -> str:
        """Keep a note for later conversations.

        Args:
            text: what to keep, understandable by itself.
        """
        return self._leave(Remember(text), "kept when this turn ends")

    async def search_memory(self, query: str) -> str:
        """Find notes, memory and diary entries that contain all the words of a query.

        Args:
            query: words to look for.
        """
        words = query.lower().split()
        entries = await self._host.database.kv.list_entries("memory/")
        entries += await self._host.database.kv.list_entries("diary/")
        found = [e for e in entries if all(word in f"{e.key} {e.text}".lower() for word in words)]
        return "\n".join(f"{e.key}: {e.text}" for e in found[-_MAX_FOUND:]) or "nothing found"

    async def read_memory(self, name: Literal["soul", "user", "instructions"]) -> str:
        """Read one of the three texts of memory.

        Args:
            name: soul: who you are; user: who the user is; instructions: how to work.
        """
        return await self._text_of(f"memory/{name}")

    async def write_memory(
        self, name: Literal["soul", "user", "instructions", "diary"], text: str
    ) -> str:
        """Replace one of the three texts of memory, or add an entry to the diary.

        Args:
            name: which.
            text: the whole new text.
        """
        key = f"memory/{name}"
        if name == "diary":
            key = f"diary/{self._host.clock.now():%Y%m%dT%H%M%SZ}-{self._turn.id}"
        return self._leave(SetKey(key, text), "kept when this turn ends")

    async def get_key(self, key: str) -> str:
        """Read the value of a key of your own.

        Args:
            key: it begins with `agents/`, your own name and `/`.
        """
        return await self._text_of(self._own(key))

    async def set_key(self, key: str, text: str) -> str:
        """Store a text under a key of your own.

        Args:
            key: it begins with `agents/`, your own name and `/`.
            text: the text.
        """
        return self._leave(SetKey(self._own(key), text), "stored when this turn ends")

    async def read_board(self) -> str:
        """Read what all agents are doing."""
        return await read_formatted(self._host.database)

    async def remind(self, when: str, text: str) -> str:
        """Say something to the user at a time, in this conversation.

        Args:
            when: `10m`, `2h`, `14:30`, `tomorrow 9:00` or `2026-12-24 18:00`.
            text: what to say.
        """
        now: datetime = self._host.clock.now()
        parsed = parse_when(f"{when} {text}", now)
        if parsed is None or parsed[0] <= now:
            raise BadDataError(f"{when!r} is no time to come")
        due_at, content = parsed
        return self._leave(Remind(content, due_at), f"set for {due_at.isoformat(' ', 'seconds')}")

    async def list_reminders(self) -> str:
        """List the reminders of this conversation that are still to come."""
        conversation = self._turn.conversation or MAIN_CONVERSATION
        pending = await list_pending(self._host.database, conversation)
        lines = [f"{r.due_at.isoformat(' ', 'seconds')} {r.content}" for r in pending]
        return "\n".join(lines) or "there are none"

    async def speak(self, text: str) -> str:
        """Say something to the user now, in the main conversation, once.

        Args:
            text: what to say.
        """
        return self._leave(Say(text), "said when this turn ends")

    def _own(self, key: str) -> str:
        own = f"agents/{self._turn.agent}/"
        if not key.startswith(own) or key == own:
            raise BadDataError(f"your keys are those that begin with {own} only")
        check_key(key)
        return key

    async def _text_of(self, key: str) -> str:
        texts = await self._host.database.kv.get_text(key)
        return texts[0] if texts else "there is nothing yet"

    def _leave(self, effect: Effect, answer: str) -> str:
        if len(self.effects) >= _MAX_EFFECTS:
            raise BadDataError(f"one turn changes at most {_MAX_EFFECTS} things")
        if not effect.text.strip():
            raise BadDataError("the text is empty")
        dump_json(effect.text)
        self.effects.append(effect)
        return answer
