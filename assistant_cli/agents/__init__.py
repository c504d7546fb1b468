"""The two agents, and the loop they share."""

from __future__ import annotations

CONVERSATION = "conversation"
HEARTBEAT = "heartbeat"
AGENTS = (CONVERSATION, HEARTBEAT)
