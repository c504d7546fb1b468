"""The values that agents, models and the store hand to each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Literal

from .errors import BadDataError

if TYPE_CHECKING:
    from uuid import UUID

    from .timing import Timing

AgentStatus = Literal["idle", "running", "failed"]
MessageState = Literal["waiting", "working", "answered", "failed", "said"]
Outcome = Literal["done", "silent", "skipped", "failed", "timed_out", "interrupted"]
Trigger = Literal["message", "timer", "request", "reminder", "schedule"]
Action = Literal["remind", "say", "ask"]

CONVERSATION = "conversation"
"""The agent that answers messages, and what its answers have as their source."""
HEARTBEAT = "heartbeat"
"""The agent that wakes on a timer, and what it says has as its source."""
AGENTS = (CONVERSATION, HEARTBEAT)
MAIN_CONVERSATION = "main"
SILENCE = "[no action needed]"
"""What an agent returns, or its model answers, that has nothing to say."""
MAX_MESSAGE_BYTES = 256_000


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
class Remember:
    """An effect of a command: keep a note in memory."""

    text: str


@dataclass(frozen=True)
class AddSchedule:
    """An effect of a command or a tool: let a text come at its time, in the conversation."""

    text: str
    timing: Timing
    action: Action


@dataclass(frozen=True)
class CancelSchedule:
    """An effect of a tool: let a schedule of the conversation fire no more."""

    schedule_id: int


@dataclass(frozen=True)
class SetKey:
    """An effect of a tool: store a text under a key."""

    key: str
    text: str


@dataclass(frozen=True)
class Say:
    """An effect of a tool: say something in the main conversation."""

    text: str


Effect = Remember | AddSchedule | CancelSchedule | SetKey | Say


@dataclass(frozen=True)
class Usage:
    """What a model, or all models in some turns, used; `cost_usd` is None where not known."""

    requests: int
    input_tokens: int
    output_tokens: int
    cost_usd: Decimal | None

    @property
    def tokens(self) -> int:
        return self.input_tokens + self.output_tokens


@dataclass(frozen=True)
class Reply:
    """What answers some messages of a turn, and what happens in the same transaction."""

    answers: Sequence[Message]
    text: str
    effects: Sequence[Effect] = ()


def is_conversation(agent: str) -> bool:
    """Whether an agent answers messages: `conversation`, or a further worker, `conversation@b`."""
    kind, at, name = agent.partition("@")
    return kind == CONVERSATION and bool(name) == bool(at)


def check_content(content: str) -> None:
    """Refuse what cannot be the text of a message.

    Raises:
        BadDataError: it is empty, too large, or holds NUL or half a surrogate pair.
    """
    size = _size(content)
    if not content.strip():
        raise BadDataError("the message is empty")
    if size > MAX_MESSAGE_BYTES:
        raise BadDataError(f"a message has at most {MAX_MESSAGE_BYTES:,} bytes; this has {size:,}")


def check_name(name: str, what: str) -> None:
    """Refuse what cannot be a name, such as of a conversation.

    Raises:
        BadDataError: it has not 1 to 200 bytes, or holds control characters.
    """
    if not 1 <= _size(name) <= 200 or not name.isprintable():
        raise BadDataError(f"a {what} has 1 to 200 bytes and no control characters")


def _size(text: str) -> int:
    if "\x00" in text:
        raise BadDataError("the database cannot keep the character NUL")
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        raise BadDataError("the text is not valid UTF-8") from None
