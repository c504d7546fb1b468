"""Commands in messages: `/remind 10m TEXT` and the like, obeyed the same under every model."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from ..clock import Clock
from ..messages import AddSchedule, Effect, Message, Remember, Reply
from ..store.database import Database
from ..store.inbox import read_history
from ..store.schedules import list_schedules
from ..store.status import format_agents, get_snapshot
from ..timing import host_zone, split_at

_COMMAND = re.compile(r"/([a-z]+)(?:\s+(.*))?", re.DOTALL)
_MAX_HISTORY = 100
_MAX_REMINDERS = 100
_MAX_SHOWN = 1_000
_MAX_NOTE_BYTES = 100_000

_HELP = """\
/status                    what the agents are doing
/remember TEXT             keep a note
/memory                    show the notes
/remind 10m TEXT           say TEXT in ten minutes; also 14:30, friday 9am, 2026-12-24 18:00
/reminders                 show what is still to come
/history N                 show the last N messages of this conversation
/help                      show this"""


@dataclass(frozen=True)
class _Call:
    """A command as it was given."""

    message: Message
    argument: str
    database: Database
    clock: Clock
    before: Sequence[Effect]

    def reply(self, text: str, *effects: Remember | AddSchedule) -> Reply:
        return Reply([self.message], text, effects)


def is_command(message: Message) -> bool:
    """Whether a message is a command rather than text for the model."""
    return _COMMAND.fullmatch(message.content.strip()) is not None


async def obey(
    message: Message, database: Database, clock: Clock, before: Sequence[Effect] = ()
) -> Reply:
    """Obey a command. What it changes comes as effects, kept together with the reply.

    `before`: what commands of the same turn have changed, which is not kept yet.
    """
    match = _COMMAND.fullmatch(message.content.strip())
    assert match is not None
    call = _Call(message, (match[2] or "").strip(), database, clock, before)
    command = _COMMANDS.get(match[1])
    if command is None:
        return call.reply(f"There is no command /{match[1]}; /help lists them.")
    return await command(call)


async def _status(call: _Call) -> Reply:
    snapshot = await get_snapshot(call.database)
    board = format_agents(snapshot.agents)
    return call.reply(f"{board}\nmessages waiting: {snapshot.inbox.waiting}")


async def _remember(call: _Call) -> Reply:
    if not call.argument:
        return call.reply("What shall I remember? /remember TEXT")
    if len(call.argument.encode()) > _MAX_NOTE_BYTES:
        return call.reply(f"That is too long to remember; a note has {_MAX_NOTE_BYTES:,} bytes.")
    return call.reply("Remembered.", Remember(call.argument))


async def _memory(call: _Call) -> Reply:
    entries = await call.database.kv.list_entries("memory/")
    lines = [f"- {entry.plain}" for entry in entries]
    lines += [f"- {effect.text}" for effect in call.before if isinstance(effect, Remember)]
    return call.reply("\n".join(lines) or "There are no notes yet; /remember TEXT keeps one.")


async def _remind(call: _Call) -> Reply:
    now = call.clock.now()
    try:
        timing, text = split_at(call.argument, host_zone(now), now)
    except ValueError as error:
        return call.reply(f"I cannot remind you: {error}.")
    effect = AddSchedule(text, timing, "remind")
    return call.reply(f"I will remind you at {_local(timing.due_at)}.", effect)


async def _reminders(call: _Call) -> Reply:
    schedules = await list_schedules(call.database, conversation=call.message.conversation)
    coming = [(s.due_at, s.content) for s in schedules if s.action == "remind"]
    added = [effect for effect in call.before if isinstance(effect, AddSchedule)]
    coming += [(effect.timing.due_at, effect.text) for effect in added]
    lines = [f"{_local(due_at)}  {text}" for due_at, text in sorted(coming)[:_MAX_REMINDERS]]
    return call.reply("\n".join(lines) or "There are no reminders to come.")


async def _history(call: _Call) -> Reply:
    if not re.fullmatch(r"\d{1,4}", call.argument or "10", re.ASCII):
        return call.reply("How many messages? /history N")
    limit = max(1, min(int(call.argument or "10"), _MAX_HISTORY))
    messages = await read_history(call.database, call.message.conversation, limit + 1)
    earlier = [message for message in messages if message.id != call.message.id][-limit:]
    # Cut, or a history that shows a history would double with each.
    lines = [f"{_local(m.created_at)} {m.role}: {_cut(m.content)}" for m in earlier]
    return call.reply("\n".join(lines) or "Nothing was said before.")


async def _help(call: _Call) -> Reply:
    return call.reply(_HELP)


_COMMANDS: dict[str, Callable[[_Call], Awaitable[Reply]]] = {
    "status": _status,
    "remember": _remember,
    "memory": _memory,
    "remind": _remind,
    "reminders": _reminders,
    "history": _history,
    "help": _help,
}


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


def _local(moment: datetime) -> str:
    return moment.astimezone().strftime("%Y-%m-%d %H:%M")
