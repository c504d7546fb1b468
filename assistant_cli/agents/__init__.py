"""The two agents, and the loop they share."""

from __future__ import annotations

from ..messages import CONVERSATION as CONVERSATION

HEARTBEAT = "heartbeat"
AGENTS = (CONVERSATION, HEARTBEAT)
