"""What produces a reply: a language model, a shell command, or the built-in offline responder."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from ..errors import AgentFailedError, ConfigurationError
from ..messages import Message, Usage

StepKind = Literal["request", "response", "tool_call", "tool_result"]
Tool = Callable[..., Awaitable[str]]
"""What a model may call: its name, annotations and docstring are what the model is told."""


class ModelError(AgentFailedError):
    """A model gave no reply; the turn failed."""


class RefusedError(ModelError):
    """The model's server refuses this key or account: asking again soon would change nothing."""


class Desk(Protocol):
    """Where a model works during a turn: what it may call, and who keeps what it does."""

    @property
    def tools(self) -> Sequence[Tool]:
        """What the model may call."""

    async def record(self, kind: StepKind, content: Any, usage: Usage | None = None) -> None:
        """Keep a step of the turn, as JSON; committed when this returns."""

    async def said(self, text: str) -> None:
        """A piece of the reply has come."""

    async def call(self, name: str, arguments: str, work: Callable[[], Awaitable[str]]) -> str:
        """Do the work of a tool call, and keep both; returns what the model is told."""


class EmptyDesk:
    """A desk with no tools that keeps nothing, for a question outside a turn."""

    tools: Sequence[Tool] = ()

    async def record(self, kind: StepKind, content: Any, usage: Usage | None = None) -> None:
        pass

    async def said(self, text: str) -> None:
        pass

    async def call(self, name: str, arguments: str, work: Callable[[], Awaitable[str]]) -> str:
        del name, arguments
        return await work()


@dataclass(frozen=True)
class Prompt:
    """What a model is asked, and the turn it is asked in.

    Attributes:
        text: what is said now.
        instructions: who the model is and what it should know, for a model that talks.
        history: what was said before, oldest first, for a model that talks.
        desk: where it works.
    """

    text: str
    agent: str
    conversation: str
    turn_id: int
    instructions: str = ""
    history: Sequence[Message] = ()
    desk: Desk = field(default_factory=EmptyDesk)


class Model(Protocol):
    """Produces replies.

    Attributes:
        name: how it is configured.
        talks: whether it uses instructions, history and tools.
    """

    name: str
    talks: bool

    async def reply(self, prompt: Prompt) -> str:
        """The reply to a prompt.

        Raises:
            ModelError: there is none, with the reason.
        """


def get_model(name: str, database_url: str | None = None, base_url: str | None = None) -> Model:
    """The model of a name: `offline`, `command:CMD`, or a language model as `openai:gpt-5`.

    Args:
        database_url: told to commands, so that they can ask the database they work for.
        base_url: an OpenAI-compatible server that answers for `openai:`.

    Raises:
        ConfigurationError: there is no such model, or it lacks an extra or a key.
    """
    kind, colon, rest = name.partition(":")
    if name == "offline":
        from .offline import OfflineModel

        return OfflineModel()
    if kind == "command" and rest.strip():
        from .command import CommandModel

        return CommandModel(name, database_url)
    if kind != "command" and colon and rest:
        from .language import LanguageModel

        return LanguageModel(name, base_url)
    raise ConfigurationError(
        f"there is no model {name!r}; use offline, command:CMD such as 'command:llm', "
        "or a language model such as openai:gpt-5"
    )
