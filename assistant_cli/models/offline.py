"""The responder that needs no language model, and says so."""

from __future__ import annotations

from ..messages import SILENCE, is_conversation
from . import Prompt

_ANSWER = (
    "Your message is kept. No language model is configured, so I obey commands only; "
    "/help lists them. To set a model, start `assistant run --model 'command:CMD'` or set "
    "ASSISTANT_MODEL; any command that reads a prompt and prints a reply will do."
)


class OfflineModel:
    """Answers every text with the plain fact that no model is configured."""

    name = "offline"
    talks = False

    async def reply(self, prompt: Prompt) -> str:
        return _ANSWER if is_conversation(prompt.agent) else SILENCE
