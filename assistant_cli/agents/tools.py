"""What a language model may do by itself: safe by construction, whatever talks it into it.

A tool reads, or leaves an effect that is kept together with the reply. It reads and writes memory
and keys under its agent's own prefix only, lists, adds and cancels schedules of its own
conversation only, and reads the board; it never writes the board, another agent's keys, or in
somebody else's name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ..errors import BadDataError
from ..json_values import check_key, dump_json
from ..messages import (
    HEARTBEAT,
    MAIN_CONVERSATION,
    AddSchedule,
    CancelSchedule,
    Effect,
    Remember,
    Say,
    SetKey,
    Turn,
    check_content,
)
from ..models import Tool
from ..store import memory, schedules
from ..store.status import read_formatted
from ..timing import Timing, host_zone, plan
from .host import Host

_MAX_FOUND = 20
_MAX_EFFECTS = 20
_MAX_SCHEDULES = 50
_FORMS = "a time, `every 2h`, or a cron line such as `0 9 * * 1-5`"


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
            self.schedule,
            self.list_schedules,
            self.cancel_schedule,
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
        found = await memory.search_memory(self._host.database, query)
        return "\n".join(f"{e.key}: {e.plain}" for e in found[-_MAX_FOUND:]) or "nothing found"

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
            moment, number = self._host.clock.now(), len(self.effects)
            key = f"diary/{moment:%Y%m%dT%H%M%SZ}-{self._turn.id}-{number:02}"
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

    async def schedule(
        self,
        when: str,
        text: str,
        action: Literal["ask", "remind"] = "ask",
        zone: str | None = None,
    ) -> str:
        """Let a text come in this conversation at a time, or again and again.

        Args:
            when: a time such as `10m`, `14:30`, `tomorrow 9:00`, `friday 9am` or
                `2026-12-24 18:00`; or `every 2h`, at least a minute; or a cron line such as
                `0 9 * * 1-5`.
            text: what comes, understandable by itself.
            action: ask: you are asked the text then, and your answer is said;
                remind: the user is told the text as it is.
            zone: whose clock a time or a cron line means, such as `Europe/Berlin`; this host's
                if left out.
        """
        check_content(text)
        timing = self._plan(when, zone)
        await self._check_room()
        due_at = timing.due_at.astimezone().isoformat(" ", "minutes")
        answer = f"comes at {due_at}; list_schedules shows it once this turn has ended"
        return self._leave(AddSchedule(text, timing, action), answer)

    async def list_schedules(self) -> str:
        """List what is scheduled in this conversation, soonest first: id, time, action, text."""
        coming = await schedules.read_formatted(
            self._host.database, self._conversation, _MAX_SCHEDULES
        )
        return coming or "nothing"

    async def cancel_schedule(self, schedule_id: int) -> str:
        """Let a schedule or reminder of this conversation come no more.

        Args:
            schedule_id: its id, as list_schedules shows it.
        """
        database = self._host.database
        coming = await schedules.list_schedules(database, conversation=self._conversation)
        if schedule_id not in {schedule.id for schedule in coming}:
            raise BadDataError(
                f"nothing is scheduled here under {schedule_id}; list_schedules shows the ids"
            )
        return self._leave(CancelSchedule(schedule_id), "cancelled when this turn ends")

    async def speak(self, text: str) -> str:
        """Say something to the user now, in the main conversation, once.

        Args:
            text: what to say.
        """
        return self._leave(Say(text), "said when this turn ends")

    @property
    def _conversation(self) -> str:
        return self._turn.conversation or MAIN_CONVERSATION

    def _plan(self, when: str, zone: str | None) -> Timing:
        now = self._host.clock.now()
        try:
            return plan(when, zone or host_zone(now), now)
        except ValueError as error:
            raise BadDataError(f"{error}; when is {_FORMS}") from None

    async def _check_room(self) -> None:
        """Refuse one more schedule where there are many: a model may ask itself for ever."""
        stored = await schedules.list_schedules(
            self._host.database, conversation=self._conversation, limit=_MAX_SCHEDULES
        )
        added = [effect for effect in self.effects if isinstance(effect, AddSchedule)]
        if len(stored) + len(added) >= _MAX_SCHEDULES:
            raise BadDataError(
                f"a conversation has at most {_MAX_SCHEDULES} schedules; cancel one that is not "
                "needed, and add this one in a later turn"
            )

    def _own(self, key: str) -> str:
        own = f"agents/{self._turn.agent}/"
        if not key.startswith(own) or key == own:
            raise BadDataError(f"your keys are those that begin with {own} only")
        check_key(key)
        return key

    async def _text_of(self, key: str) -> str:
        entry = await self._host.database.kv.get_entry(key)
        return entry.plain if entry else "there is nothing yet"

    def _leave(self, effect: Effect, answer: str) -> str:
        if len(self.effects) >= _MAX_EFFECTS:
            raise BadDataError(f"one turn changes at most {_MAX_EFFECTS} things")
        if not isinstance(effect, CancelSchedule):
            if not effect.text.strip():
                raise BadDataError("the text is empty")
            dump_json(effect.text)
        self.effects.append(effect)
        return answer
