"""The conversation agent: answers what waits in the inbox, several conversations at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from math import inf

from ..errors import BadDataError
from ..messages import CONVERSATION, Message, Outcome, Reply, Turn
from ..models import ModelError, RefusedError
from ..models.pausing import REFUSED_PAUSE
from ..store import answering
from .commands import is_command, obey
from .definition import AgentDefinition, agent
from .host import Finish, Host
from .turn_context import TurnContext


@agent(name=CONVERSATION)
async def conversation(turn: TurnContext) -> str:
    """Answer what was said."""
    reply = await turn.ask("\n".join(message.content for message in turn.messages))
    if not reply.strip():
        raise ModelError("the model's reply is empty")
    return reply


@dataclass
class _Progress:
    """How far a turn has come: the commands it obeyed, and whether its model was refused."""

    obeyed: list[Reply] = field(default_factory=list)
    refused: bool = False


class ConversationAgent:
    """A worker that shares the inbox: messages that wait in a conversation become one turn.

    Commands are obeyed one by one; the other messages share one reply.
    """

    def __init__(self, host: Host, definition: AgentDefinition) -> None:
        self.name = definition.name
        self.timeout = definition.timeout
        self.concurrency = host.concurrency
        self._host = host
        self._definition = definition
        self._woken = asyncio.Event()
        self._worker = answering.Worker(host.board, self.name)
        self._progress: dict[int, _Progress] = {}

    async def recover(self, running: Collection[int]) -> None:
        host = self._host
        await answering.recover(host.database, self.name, host.lease.token, running)

    async def claim(self, limit: int) -> Sequence[Turn]:
        self._woken.clear()
        return await self._worker.claim(self._host.models[self.name].name, limit)

    async def show(
        self, running: Sequence[Turn], at_rest: Mapping[str, str | None], *, anew: bool = False
    ) -> None:
        entry = self._host.board.get_entry(self.name)
        true = entry["status"] == "running" if running and entry else entry == at_rest
        # Where turns begin and are answered, the same statements write the board.
        if anew or not true:
            await self._worker.show(at_rest)

    async def execute(self, turn: Turn) -> Finish:
        host = self._host
        commands = [message for message in turn.messages if is_command(message)]
        texts = [message for message in turn.messages if not is_command(message)]
        progress = self._progress[turn.id] = _Progress()
        for message in commands:
            before = [effect for reply in progress.obeyed for effect in reply.effects]
            progress.obeyed.append(await obey(message, host.database, host.clock, before))
        answer = [await self._answer(turn, texts, progress)] if texts else []
        return partial(self._finish, turn, [*progress.obeyed, *answer])

    async def _finish(self, turn: Turn, replies: Sequence[Reply]) -> Outcome:
        await self._worker.keep(turn, replies)
        self._progress.pop(turn.id, None)
        return "done"

    async def _answer(self, turn: Turn, texts: list[Message], progress: _Progress) -> Reply:
        context = TurnContext(self._host, turn, texts)
        try:
            reply = await self._definition.perform(context)
        except RefusedError:
            progress.refused = True
            raise
        return Reply(texts, reply or "", context.effects)

    async def fail(self, turn: Turn, outcome: Outcome, error: str) -> None:
        # A command is obeyed and answered also where the model fails beside it.
        host = self._host
        progress = self._progress.get(turn.id, _Progress())
        fail = partial(
            answering.fail_turn,
            host.database,
            host.lease.token,
            turn,
            outcome,
            error,
            REFUSED_PAUSE if progress.refused else host.retry_delay,
            attempted=not progress.refused,
        )
        try:
            await fail(replies=progress.obeyed)
        except BadDataError:
            # Most likely the turn failed because the database refuses one of the replies.
            await fail()
        self._progress.pop(turn.id, None)

    async def wait(self) -> bool:
        """Wait for a message to come, or for the time of the next attempt."""
        seconds = self._worker.seconds_to_next
        if seconds is None and self._host.until_idle:
            return False
        until = None
        if seconds is not None and seconds < inf:
            until = self._host.clock.now() + timedelta(seconds=seconds)
        await self._host.clock.wait(self._woken, until)
        return True

    @property
    def waits_for_turns(self) -> bool:
        """Whether every waiting message waits for a turn to end, perhaps another worker's."""
        return self._worker.seconds_to_next == inf

    def wake(self) -> None:
        """Look into the inbox again."""
        self._woken.set()
