"""The values that agents, models and the store hand to each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from uuid import UUID

AgentStatus = Literal["idle", "running", "failed"]
MessageState = Literal["waiting", "working", "answered", "failed", "said"]
Outcome = Literal["done", "silent", "skipped", "failed", "timed_out", "interrupted"]
Trigger = Literal["message", "timer", "request", "reminder", "schedule"]

MAIN_CONVERSATION = "main"
SILENCE = "[no action needed]"
"""What an agent returns, or its model answers, that has nothing to say."""


@dataclass(frozen=True)
class Message:
    """What somebody (`role` user) or an agent (`role` assistant) said."""

    id: UUID
    conversation: str
    role: Literal["user", "assistant"]
    content: str
    sender: str
    source: str
    state: MessageState
    created_at: datetime
    attempts: int = 0
    error: str | None = None


@dataclass(frozen=True)
class Turn:
    """One execution of an agent, claimed and not yet ended."""

    id: int
    agent: str
    trigger: Trigger
    conversation: str | None
    messages: Sequence[Message] = ()


@dataclass(frozen=True)
class Reminder:
    """Something to be said in a conversation at a time."""

    id: int
    conversation: str
    content: str
    due_at: datetime


@dataclass(frozen=True)
class Remember:
    """An effect of a command: keep a note in memory."""

    text: str


@dataclass(frozen=True)
class Remind:
    """An effect of a command: say a text at a time."""

    text: str
    due_at: datetime


@dataclass(frozen=True)
class SetKey:
    """An effect of a tool: store a text under a key."""

    key: str
    text: str


@dataclass(frozen=True)
class Say:
    """An effect of a tool: say something in the main conversation."""

    text: str


Effect = Remember | Remind | SetKey | Say


@dataclass(frozen=True)
class Usage:
    """What a model used: requests, tokens, and US dollars where the price is known."""

    requests: int
    input_tokens: int
    output_tokens: int
    cost_usd: Decimal | None


@dataclass(frozen=True)
class Reply:
    """What answers some messages of a turn, and what happens in the same transaction."""

    answers: Sequence[Message]
    text: str
    effects: Sequence[Effect] = ()
