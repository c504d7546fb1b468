"""The two agents, and the loop they share."""

from __future__ import annotations

CONVERSATION = "conversation"
HEARTBEAT = "heartbeat"
AGENTS = (CONVERSATION, HEARTBEAT)


def is_conversation(agent: str) -> bool:
    """Whether an agent answers messages: `conversation`, or a further worker, `conversation@b`."""
    kind, at, name = agent.partition("@")
    return kind == CONVERSATION and bool(name) == bool(at)
