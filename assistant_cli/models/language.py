"""Language models through pydantic-ai: `openai:…`, `anthropic:…`, `google:…`, `ollama:…`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Any, assert_never
from urllib.parse import urlsplit

import pydantic_ai
from pydantic import ValidationError
from pydantic_ai import exceptions
from pydantic_ai.direct import model_request_stream
from pydantic_ai.messages import (
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRequest,
    ModelResponse,
    PartDeltaEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models import Model as PydanticModel
from pydantic_ai.models import ModelRequestParameters, infer_model
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import ToolDefinition
from pydantic_core import SchemaValidator

from ..errors import BadDataError, ConfigurationError, summary_of
from ..messages import Message, Usage
from . import Desk, ModelError, Prompt, RefusedError, Tool

_MAX_REQUESTS = 20
_SDK_RETRIES = 5
"""Rate limits, 5xx and refused connections: the SDKs wait as the server asks, else longer each
time; the turn's deadline ends it."""

_REFUSALS = {401, 402, 403}


class LanguageModel:
    """Answers with a language model that may use tools, request by request.

    What is sent and what comes back is kept on the turn before anything is done about it.
    """

    talks = True

    def __init__(self, name: str, base_url: str | None) -> None:
        """The model of a name such as `openai:gpt-5`.

        Args:
            base_url: an OpenAI-compatible server to use instead of OpenAI's, for `openai:`.

        Raises:
            ConfigurationError: there is no such model, or an extra or a key is missing.
        """
        self.name = name
        self._model = _open(name, base_url)

    async def reply(self, prompt: Prompt) -> str:
        tools = {tool.__name__: tool for tool in prompt.desk.tools}
        messages = _conversation(prompt)
        sent = 0
        for _ in range(_MAX_REQUESTS):
            await prompt.desk.record("request", _dump(messages[sent:]))
            response = await self._query(messages, tools, prompt.desk)
            if not response.tool_calls:
                return response.text or ""
            sent = len(messages) + 1
            messages += [response, await _execute(response, tools, prompt.desk)]
        raise ModelError(f"the model asked for tools {_MAX_REQUESTS} times and gave no answer")

    async def _query(
        self, messages: list[ModelMessage], tools: dict[str, Tool], desk: Desk
    ) -> ModelResponse:
        stream = model_request_stream(
            self._model,
            messages,
            model_settings=ModelSettings(max_retries=_SDK_RETRIES),
            model_request_parameters=ModelRequestParameters(
                function_tools=[_describe(tool).definition for tool in tools.values()]
            ),
        )
        with _errors_explained():
            async with stream as events:
                async for event in events:
                    if text := _text_of(event):
                        await desk.said(text)
                response = events.get()
        await desk.record("response", _dump([response]), _usage(response))
        return response


def _open(name: str, base_url: str | None) -> PydanticModel:
    provider, _, model = name.partition(":")
    try:
        if provider == "openai" and base_url:
            from pydantic_ai.models.openai import OpenAIChatModel
            from pydantic_ai.providers.openai import OpenAIProvider

            _check_url(base_url)
            return OpenAIChatModel(model, provider=OpenAIProvider(base_url=base_url))
        return infer_model(name)
    except ImportError:
        raise ConfigurationError(
            f"the model {name} needs more: pip install 'assistant-cli[{provider}]'"
        ) from None
    except exceptions.UserError as error:
        key = re.search(r"Set the `(\w+)` environment variable", str(error))
        advice = f"export {key[1]}=…" if key else summary_of(error)
        raise ConfigurationError(f"the model {name} cannot be used: {advice}") from None


def _check_url(base_url: str) -> None:
    try:
        url = urlsplit(base_url)
        valid = url.scheme in {"http", "https"} and url.hostname and url.port != 0
    except ValueError:
        valid = False
    if not valid:
        # It may hold a password, and is not repeated.
        raise ConfigurationError("the base URL is malformed; write it like https://host:8080/v1")


def _conversation(prompt: Prompt) -> list[ModelMessage]:
    messages = [_spoken(message) for message in prompt.history]
    return [
        *messages,
        ModelRequest(parts=[UserPromptPart(prompt.text)], instructions=prompt.instructions or None),
    ]


def _spoken(message: Message) -> ModelMessage:
    match message.role:
        case "user":
            return ModelRequest(parts=[UserPromptPart(message.content)])
        case "assistant":
            return ModelResponse(parts=[TextPart(message.content)])
        case _:
            assert_never(message.role)


async def _execute(response: ModelResponse, tools: dict[str, Tool], desk: Desk) -> ModelRequest:
    parts = []
    for call in response.tool_calls:
        arguments = call.args_as_json_str()
        work = partial(_call, tools, call.tool_name, arguments)
        result = await desk.call(call.tool_name, arguments, work)
        parts.append(ToolReturnPart(call.tool_name, result, call.tool_call_id))
    return ModelRequest(parts=parts)


async def _call(tools: dict[str, Tool], name: str, arguments: str) -> str:
    tool = tools.get(name)
    if tool is None:
        raise BadDataError(f"there is no tool {name!r}; the tools are {', '.join(tools)}")
    try:
        given = _describe(tool).validator.validate_json(arguments or "{}")
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise BadDataError(f"bad arguments: {found}") from None
    return await tool(**given)


@dataclass(frozen=True)
class _Description:
    """What a model is told of a tool, and what its arguments are held against."""

    definition: ToolDefinition
    validator: SchemaValidator


_descriptions: dict[object, _Description] = {}


def _describe(tool: Tool) -> _Description:
    """The description of a tool, made once: it takes longer than most of a turn."""
    # A tool is a method, of another object in each turn.
    function = getattr(tool, "__func__", tool)
    if function not in _descriptions:
        described = pydantic_ai.Tool(tool, takes_ctx=False)
        _descriptions[function] = _Description(
            described.tool_def, described.function_schema.validator
        )
    return _descriptions[function]


def _text_of(event: object) -> str:
    match event:
        case PartStartEvent(part=TextPart(content=text)):
            return text
        case PartDeltaEvent(delta=TextPartDelta(content_delta=text)):
            return text
        case _:
            return ""


def _dump(messages: list[ModelMessage]) -> Any:
    # Not as JSON text, which has no way to write half a surrogate pair.
    return ModelMessagesTypeAdapter.dump_python(messages, mode="json")


def _usage(response: ModelResponse) -> Usage:
    try:
        cost: Decimal | None = response.cost().total_price
    except Exception:
        # Prices are known for the well-known models only.
        cost = None
    return Usage(1, response.usage.input_tokens, response.usage.output_tokens, cost)


@contextmanager
def _errors_explained() -> Iterator[None]:
    try:
        yield
    except exceptions.ModelHTTPError as error:
        kind = RefusedError if error.status_code in _REFUSALS else ModelError
        said = f"the model's server answered {error.status_code}: {_reason(error)}"
        raise kind(said) from None
    except exceptions.AgentRunError as error:
        raise ModelError(f"the model gave no reply: {summary_of(error)}") from None


def _reason(error: exceptions.ModelHTTPError) -> str:
    body = error.body
    inner = body.get("error", body) if isinstance(body, dict) else body
    reason = inner.get("message") if isinstance(inner, dict) else inner
    return " ".join(str(reason or "no reason given").split())
