"""`assistant chat`: a talk at the terminal."""

from __future__ import annotations

import signal
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import (
    AgentFailedError,
    BadDataError,
    DatabaseUnreachableError,
    QueueFullError,
    UsageError,
)
from ..messages import CONVERSATION, MAIN_CONVERSATION, check_name
from . import collect_as_usual, output
from .commands import Command
from .run import models_from, options_from
from .send import wait_for
from .session import ended_by_signals, settings, with_database

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession

    from ..models import Model
    from ..runtime import RunOptions
    from ..store.database import Database

_SHOWN_AT_ENTRY = 10
_COMMANDS = ["/status", "/remember", "/memory", "/remind", "/reminders", "/history", "/help"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(cls=Command)(chat)


def chat(
    conversation: Annotated[
        str, typer.Option("--conversation", "-c", help="The conversation.")
    ] = MAIN_CONVERSATION,
) -> None:
    """Talk with the assistant; Ctrl-C cancels a reply, Ctrl-D leaves.

    Replies of language models come as they are made.

    It speaks to the `assistant run` that answers, on this host or another; with none, it hosts
    the agents that nobody else does, and the chat and they end together.
    """
    if not (sys.stdin and sys.stdin.isatty() and output.can_redraw()):
        raise UsageError(
            "a chat needs a terminal, and a TERM that is not dumb; `assistant send --wait` is "
            "for scripts"
        )
    check_name(conversation, "conversation")
    options = options_from(settings())
    models = models_from(settings(), options.names)

    async def talk(database: Database) -> list[int]:
        async with _agents(database, models, options):
            with ended_by_signals() as received:
                await _Chat(database, conversation).run()
        return received

    for number in with_database(talk, setup=True):
        raise typer.Exit(128 + number)


@asynccontextmanager
async def _agents(
    database: Database, models: dict[str, Model], options: RunOptions
) -> AsyncIterator[None]:
    """Host meanwhile what nobody else does, unless messages are answered elsewhere.

    A host that fails ends what is done meanwhile, with its own error.
    """
    import asyncio

    from ..runtime import first_cause, host
    from ..store.status import get_snapshot

    snapshot = await get_snapshot(database)
    if snapshot.answering:
        yield
        return
    live = {row.agent for row in snapshot.agents if row.live}
    options = replace(options, agents=[a for a in options.agents if a.name not in live])
    hosted, model = " and ".join(options.names), models[CONVERSATION].name
    output.tell(f"no conversation agent is running: this chat hosts {hosted}; the model is {model}")
    collect_as_usual()
    stopping = asyncio.Event()
    try:
        async with asyncio.TaskGroup() as tasks:
            hosting = tasks.create_task(host(database, models, options, stopping))
            try:
                yield
            finally:
                stopping.set()
                # Awaited here: where the talk failed, the task group would cancel the host.
                await asyncio.wait({hosting})
    except BaseExceptionGroup as group:
        raise first_cause(group) from None


class _Chat:
    """One talk in one conversation."""

    def __init__(self, database: Database, conversation: str) -> None:
        self._database = database
        self._conversation = conversation

    async def run(self) -> None:
        import asyncio

        from prompt_toolkit.patch_stdout import patch_stdout

        session = await self._open()
        listening = asyncio.create_task(self._listen())
        try:
            while True:
                with patch_stdout():
                    text = await _ask(session)
                if text is None:
                    return
                if text.strip():
                    await self._attempt(text)
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)

    async def _open(self) -> PromptSession[str]:
        """Show what was said last, and recall what this user said with the arrow keys."""
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import WordCompleter
        from prompt_toolkit.history import InMemoryHistory

        from ..store.history import read_last
        from .history import print_messages

        messages = await read_last(self._database, self._conversation, 200)
        print_messages(messages[-_SHOWN_AT_ENTRY:])
        said = [message.content for message in messages if message.role == "user"]
        # The line editor does not escape what would steer a terminal.
        said = [text for text in said if output.show_text(text) == text]
        return PromptSession(
            history=InMemoryHistory(said),
            completer=WordCompleter(_COMMANDS, sentence=True),
            complete_while_typing=False,
        )

    async def _listen(self) -> None:
        """Show what the agents say by themselves, such as reminders, above the prompt."""
        from ..store.history import follow_messages
        from .history import print_messages

        async with aclosing(follow_messages(self._database, self._conversation, 1)) as states:
            await anext(states)
            async for messages in states:
                spoken = [m for m in messages if m.role == "assistant"]
                unasked = [m for m in spoken if m.source != CONVERSATION]
                # Even to print nothing redraws the prompt, and may lose a key typed meanwhile.
                if unasked:
                    print_messages(unasked)

    async def _attempt(self, text: str) -> None:
        """Say something; a database that is away does not end the chat."""
        try:
            await self._say(text)
        except DatabaseUnreachableError as error:
            output.tell(f"{error}; whether the message is kept, /history tells")

    async def _say(self, text: str) -> None:
        """Send a message and show its reply as it comes; Ctrl-C takes the message back."""
        import asyncio

        from ..store import inbox

        try:
            message = await inbox.put_message(self._database, text, conversation=self._conversation)
        except (BadDataError, QueueFullError) as error:
            output.tell(str(error))
            return
        reply = output.GrowingText()
        waiting = asyncio.ensure_future(wait_for(self._database, message, reply.show))
        loop, talk = asyncio.get_running_loop(), asyncio.current_task()
        assert talk is not None
        loop.add_signal_handler(signal.SIGINT, waiting.cancel)
        try:
            reply.finish(await waiting)
        except AgentFailedError as error:
            output.tell(str(error))
        except asyncio.CancelledError:
            if talk.cancelling():
                raise
            await inbox.withdraw(self._database, message)
            output.tell("cancelled")
        finally:
            waiting.cancel()
            loop.remove_signal_handler(signal.SIGINT)


async def _ask(session: PromptSession[str]) -> str | None:
    """The next line; empty where Ctrl-C took it back, None where Ctrl-D ended the chat."""
    try:
        return await session.prompt_async("> ")
    except KeyboardInterrupt:
        return ""
    except EOFError:
        return None
