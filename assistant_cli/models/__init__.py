"""What produces a reply: a shell command, or the built-in offline responder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ..errors import AssistantError, ConfigurationError

SILENCE = "[no action needed]"
"""The answer by which a model has nothing to say in a heartbeat."""


@dataclass(frozen=True)
class Prompt:
    """What a model is asked, and the facts of the turn it is asked in."""

    text: str
    agent: str
    conversation: str
    turn_id: int


class ModelError(AssistantError):
    """A model gave no reply; the turn failed."""

    exit_code = 6


class Model(Protocol):
    """Produces replies. `name` is how it is configured; `reflects`: has it thoughts of its own."""

    name: str
    reflects: bool

    async def reply(self, prompt: Prompt) -> str:
        """The reply to a prompt.

        Raises:
            ModelError: there is none, with the reason.
        """


def get_model(name: str, database_url: str | None = None) -> Model:
    """The model of a name: `offline`, or `command:CMD`.

    Args:
        database_url: told to commands, so that they can ask the database they work for.

    Raises:
        ConfigurationError: there is no such model.
    """
    if name == "offline":
        from .offline import OfflineModel

        return OfflineModel()
    if name.startswith("command:") and name.removeprefix("command:").strip():
        from .command import CommandModel

        return CommandModel(name, database_url)
    raise ConfigurationError(
        f"there is no model {name!r}; use offline, or command:CMD such as 'command:llm'"
    )
