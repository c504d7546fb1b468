"""`assistant history`: what was said, and what is being said."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from ..messages import MAIN_CONVERSATION, Message
from . import output
from .commands import Command
from .session import TIMEOUT, Count, JsonOption, optional_duration, while_read, with_database

if TYPE_CHECKING:
    from ..store.database import Database


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(cls=Command)(history)


def history(
    count: Count = 20,
    conversation: Annotated[
        str | None,
        typer.Option("--conversation", "-c", help="The conversation. [default: main]"),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Of all conversations.")] = False,
    as_json: JsonOption = False,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with each new message.")
    ] = False,
    timeout: Annotated[str | None, TIMEOUT] = None,
) -> None:
    """Show the last messages of a conversation, oldest first.

    In a pipe: a line a message with time, conversation, role, state and text, separated by
    tabs. With --follow, each new message as it is committed, through database restarts; with
    --json as well, one document of the last messages and then one a message, a line each.

    \b
    assistant history -n 5 --conversation work
    assistant history --all --follow --json | jq .content
    """
    from ..store.history import read_last

    if everything and conversation is not None:
        raise UsageError("give either --conversation or --all")
    where = None if everything else _check(conversation)
    limit = optional_duration(timeout, "--timeout")
    if follow:
        with_database(
            lambda database: while_read(_follow(database, where, count, as_json)), timeout=limit
        )
        return

    messages = with_database(lambda database: read_last(database, where, count), timeout=limit)
    _print_last(messages, as_json)


def _check(conversation: str | None) -> str:
    from ..json_values import check_utf8

    name = MAIN_CONVERSATION if conversation is None else conversation
    check_utf8(name, "the conversation")
    return name


async def _follow(database: Database, where: str | None, count: int, as_json: bool) -> None:
    from ..store.history import follow_messages

    async with aclosing(follow_messages(database, where, count)) as states:
        _print_last(await anext(states), as_json)
        async for messages in states:
            if as_json:
                documents = map(describe_message, messages)
                text = "".join(map(output.format_document, documents))
            else:
                text = format_messages(messages)
            await output.write_as_read(text)


def _print_last(messages: Sequence[Message], as_json: bool) -> None:
    if as_json:
        documents = [describe_message(message) for message in messages]
        output.print_document({"schema": 1, "messages": documents})
    else:
        print_messages(messages)


def describe_message(message: Message) -> dict[str, Any]:
    """A message as documents carry it; fields are only ever added to it."""
    return {
        "id": str(message.id),
        "conversation": message.conversation,
        "role": message.role,
        "sender": message.sender,
        "source": message.source,
        "state": message.state,
        "created_at": output.iso(message.created_at),
        "content": message.content,
        "error": message.error,
    }


def print_messages(messages: Sequence[Message]) -> None:
    """Print messages for people on a terminal, in a pipe a line each; and send them off."""
    sys.stdout.write(format_messages(messages))
    sys.stdout.flush()


def format_messages(messages: Sequence[Message]) -> str:
    """Messages for people on a terminal, in a pipe a line each."""
    if output.stdout_is_terminal():
        return "".join(map(_show, messages))
    return output.format_rows(
        (m.created_at, m.conversation, m.role, m.state, m.content) for m in messages
    )


def _show(message: Message) -> str:
    """A message with its own lines, set in so that no text looks like another message."""
    state = "" if message.state in {"answered", "said"} else f"  {message.state}"
    reason = f": {message.error}" if state and message.error else ""
    head = (
        f"{output.local_time(message.created_at)}  {message.conversation}  "
        f"{message.role} ({message.source}){state}{reason}"
    )
    lines = output.show_text(message.content).split("\n")
    return output.show_line(head) + "\n" + "".join(f"  {line}\n" for line in lines)
