"""The conversation agent: answers what is waiting in the inbox, a conversation at a time."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from functools import partial

from ..errors import BadDataError
from ..messages import Message, Outcome, Reply, Turn
from ..models import ModelError, RefusedError
from ..models.pausing import REFUSED_PAUSE
from ..store import inbox
from . import CONVERSATION
from .commands import is_command, obey
from .definition import AgentDefinition, agent
from .loop import Finish, Host
from .turn_context import TurnContext


@agent(name=CONVERSATION)
async def conversation(turn: TurnContext) -> str:
    """Answer what was said."""
    reply = await turn.ask("\n".join(message.content for message in turn.messages))
    if not reply.strip():
        raise ModelError("the model's reply is empty")
    return reply


class ConversationAgent:
    """All messages that wait in a conversation become one turn.

    Commands are obeyed one by one; the other messages share one reply.
    """

    def __init__(self, host: Host, definition: AgentDefinition) -> None:
        self.name = definition.name
        self.timeout = definition.timeout
        self._host = host
        self._definition = definition
        self._woken = asyncio.Event()
        self._obeyed: list[Reply] = []
        self._refused = False

    async def recover(self) -> None:
        await inbox.recover(self._host.database, self._host.lease.token)

    async def claim(self) -> Turn | None:
        host = self._host
        self._woken.clear()
        self._obeyed, self._refused = [], False
        model = host.model_of(self.name).name
        return await inbox.claim_turn(host.database, host.lease.token, model)

    def describe(self, turn: Turn) -> str:
        count = len(turn.messages)
        return f"answering {count} message{'s' if count > 1 else ''} in {turn.conversation}"

    async def execute(self, turn: Turn) -> Finish:
        host = self._host
        commands = [message for message in turn.messages if is_command(message)]
        texts = [message for message in turn.messages if not is_command(message)]
        self._obeyed = []
        for message in commands:
            before = [effect for reply in self._obeyed for effect in reply.effects]
            self._obeyed.append(await obey(message, host.database, host.clock, before))
        replies = [*self._obeyed, *([await self._answer(turn, texts)] if texts else [])]

        async def finish() -> Outcome:
            await inbox.answer_turn(host.database, host.lease.token, turn, replies)
            return "done"

        return finish

    async def _answer(self, turn: Turn, texts: list[Message]) -> Reply:
        context = TurnContext(self._host, turn, texts)
        try:
            reply = await self._definition.perform(context)
        except RefusedError:
            self._refused = True
            raise
        return Reply(texts, reply or "", context.effects)

    async def fail(self, turn: Turn, outcome: Outcome, error: str) -> None:
        # A command is obeyed and answered also where the model fails beside it.
        host = self._host
        fail = partial(
            inbox.fail_turn,
            host.database,
            host.lease.token,
            turn,
            outcome,
            error,
            REFUSED_PAUSE if self._refused else host.retry_delay,
            attempted=not self._refused,
        )
        try:
            await fail(replies=self._obeyed)
        except BadDataError:
            # Most likely it failed because the database refuses one of them.
            await fail()

    async def wait(self) -> bool:
        """Wait for a message to come, or for the time of the next attempt."""
        async with self._host.database.connection() as connection:
            seconds = await inbox.seconds_to_next(connection)
        if seconds is None and self._host.until_idle:
            return False
        until = None
        if seconds is not None:
            until = self._host.clock.now() + timedelta(seconds=seconds)
        await self._host.clock.wait(self._woken, until)
        return True

    def wake(self) -> None:
        """Look into the inbox again."""
        self._woken.set()
