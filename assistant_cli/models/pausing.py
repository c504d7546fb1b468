"""A model whose server is left alone for a while once it has refused."""

from __future__ import annotations

from datetime import datetime, timedelta

from ..clock import Clock
from . import Model, Prompt, RefusedError

REFUSED_PAUSE = timedelta(minutes=10)


class PausingModel:
    """Answers as its model does, but asks a server that refused this key no more for a while.

    Meanwhile each reply is refused for the same reason.
    """

    def __init__(self, model: Model, clock: Clock) -> None:
        self.name = model.name
        self.talks = model.talks
        self._model = model
        self._clock = clock
        self._refusal: tuple[datetime, str] | None = None

    async def reply(self, prompt: Prompt) -> str:
        now = self._clock.now()
        # A clock that is set back does not prolong the pause.
        if self._refusal is not None and now < self._refusal[0] <= now + REFUSED_PAUSE:
            raise RefusedError(self._refusal[1])
        self._refusal = None
        try:
            return await self._model.reply(prompt)
        except RefusedError as error:
            self._refusal = (self._clock.now() + REFUSED_PAUSE, str(error))
            raise
