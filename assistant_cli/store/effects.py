"""What turns change besides what they say."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import assert_never

from ..messages import (
    MAIN_CONVERSATION,
    AddSchedule,
    CancelSchedule,
    Effect,
    Message,
    Remember,
    Say,
    SetKey,
    Turn,
)
from .database import Connection
from .inbox import say
from .kv import store_text
from .schedules import cancel_active, insert_schedule


async def apply_effect(
    connection: Connection, turn: Turn, effect: Effect, number: int, message: Message | None = None
) -> None:
    """Do what a turn changes besides what it says, as part of the caller's transaction.

    Args:
        number: which of the turn's effects it is; it tells notes of the same time apart.
        message: what was answered, where anything was; it gives a note its time.
    """
    conversation = turn.conversation or MAIN_CONVERSATION
    match effect:
        case Remember(text):
            await store_text(connection, _note_key(turn, number, message), text)
        case AddSchedule(text, timing, action):
            await insert_schedule(connection, conversation, text, timing, action)
        case CancelSchedule(schedule_id):
            await cancel_active(connection, conversation, schedule_id)
        case SetKey(key, text):
            await store_text(connection, key, text)
        case Say(text):
            await say(connection, turn, text, source=turn.agent, conversation=MAIN_CONVERSATION)
        case _:
            assert_never(effect)


def _note_key(turn: Turn, number: int, message: Message | None) -> str:
    moment = (message.created_at if message else datetime.now(UTC)).astimezone(UTC)
    name = message.id.hex[:8] if message else f"turn-{turn.id}"
    suffix = f"-{number}" if number else ""
    return f"memory/notes/{moment:%Y%m%dT%H%M%S.%fZ}-{name}{suffix}"
