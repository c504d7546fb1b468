"""The conversation agent: answers what is waiting in the inbox, a conversation at a time."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from ..messages import MAIN_CONVERSATION, Message, Outcome, Reply, Turn
from ..models import Prompt
from ..store import inbox
from . import CONVERSATION
from .commands import is_command, obey
from .loop import Finish, Host


class ConversationAgent:
    """All messages that wait in a conversation become one turn.

    Commands are obeyed one by one; the other messages are one prompt to the model and share
    its reply.
    """

    name = CONVERSATION

    def __init__(self, host: Host) -> None:
        self._host = host
        self._work = asyncio.Event()
        self._obeyed: list[Reply] = []

    async def recover(self) -> None:
        await inbox.recover(self._host.database, self._host.lease.token)

    async def claim(self) -> Turn | None:
        host = self._host
        self._work.clear()
        self._obeyed = []
        return await inbox.claim_turn(host.database, host.lease.token, host.model.name)

    def describe(self, turn: Turn) -> str:
        count = len(turn.messages)
        return f"answering {count} message{'s' if count > 1 else ''} in {turn.conversation}"

    async def execute(self, turn: Turn) -> Finish:
        host = self._host
        commands = [message for message in turn.messages if is_command(message)]
        texts = [message for message in turn.messages if not is_command(message)]
        self._obeyed = [await obey(message, host.database, host.clock) for message in commands]
        replies = [*self._obeyed, *([await self._ask_model(turn, texts)] if texts else [])]

        async def finish() -> Outcome:
            await inbox.answer_turn(host.database, host.lease.token, turn, replies)
            return "done"

        return finish

    async def _ask_model(self, turn: Turn, texts: list[Message]) -> Reply:
        prompt = Prompt(
            text="\n".join(message.content for message in texts),
            agent=self.name,
            conversation=turn.conversation or MAIN_CONVERSATION,
            turn_id=turn.id,
        )
        return Reply(texts, await self._host.model.reply(prompt))

    async def fail(self, turn: Turn, outcome: Outcome, error: str) -> None:
        # A command is obeyed and answered also where the model fails beside it.
        host = self._host
        await inbox.fail_turn(
            host.database,
            host.lease.token,
            turn,
            outcome,
            error,
            host.retry_delay,
            replies=self._obeyed,
        )

    async def wait(self) -> bool:
        """Wait for a message to come, or for the time of the next attempt."""
        async with self._host.database.connection() as connection:
            seconds = await inbox.seconds_to_next(connection)
        if seconds is None and self._host.until_idle:
            return False
        until = None
        if seconds is not None:
            until = self._host.clock.now() + timedelta(seconds=seconds)
        await self._host.clock.wait(self._work, until)
        return True

    def wake(self) -> None:
        """Look into the inbox again."""
        self._work.set()
