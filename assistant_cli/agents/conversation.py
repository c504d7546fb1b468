"""The conversation agent: answers what is waiting in the inbox, a conversation at a time."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from functools import partial

from ..crash_points import reach
from ..errors import BadDataError
from ..messages import MAIN_CONVERSATION, Message, Outcome, Reply, Turn
from ..models import ModelError, Prompt, RefusedError
from ..store import inbox
from . import CONVERSATION
from .commands import is_command, obey
from .context import build_prompt
from .desk import TurnDesk
from .loop import Finish, Host

_REFUSED_PAUSE = timedelta(minutes=10)


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
        self._refusal: RefusedError | None = None
        self._refused_until = datetime.min.replace(tzinfo=UTC)

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
        self._obeyed = []
        for message in commands:
            before = [effect for reply in self._obeyed for effect in reply.effects]
            self._obeyed.append(await obey(message, host.database, host.clock, before))
        reach("model.before")
        replies = [*self._obeyed, *([await self._ask_model(turn, texts)] if texts else [])]
        reach("model.after")

        async def finish() -> Outcome:
            await inbox.answer_turn(host.database, host.lease.token, turn, replies)
            return "done"

        return finish

    async def _ask_model(self, turn: Turn, texts: list[Message]) -> Reply:
        host = self._host
        text = "\n".join(message.content for message in texts)
        if not host.model.talks:
            conversation = turn.conversation or MAIN_CONVERSATION
            return Reply(
                texts, await host.model.reply(Prompt(text, self.name, conversation, turn.id))
            )
        desk = TurnDesk(host, turn)
        prompt = await build_prompt(host.database, host.clock, desk, turn, text)
        return Reply(texts, await self._reply(prompt), desk.effects)

    async def _reply(self, prompt: Prompt) -> str:
        """The model's reply; a server that refused this key is not asked again for a while."""
        clock = self._host.clock
        if self._refusal is not None and clock.now() < self._refused_until:
            raise self._refusal
        self._refusal = None
        try:
            reply = await self._host.model.reply(prompt)
        except RefusedError as error:
            self._refusal = error
            self._refused_until = clock.now() + _REFUSED_PAUSE
            raise
        if not reply.strip():
            raise ModelError("the model's reply is empty")
        return reply

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
            _REFUSED_PAUSE if self._refusal else host.retry_delay,
            attempted=self._refusal is None,
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
        await self._host.clock.wait(self._work, until)
        return True

    def wake(self) -> None:
        """Look into the inbox again."""
        self._work.set()
