"""What an agent's function has in a turn."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from ..crash_points import reach
from ..errors import BadDataError
from ..messages import MAIN_CONVERSATION, Effect, Message, Turn
from ..models import Prompt
from ..patience import patiently
from ..store.board import shorten_detail
from ..store.database import Database
from ..store.turns import keepable
from .context import build_prompt
from .desk import TurnDesk
from .host import Host


class TurnContext:
    """A turn as its agent's function sees it.

    Attributes:
        id: the turn, as in `assistant turns show ID`.
        agent: the agent's name.
        messages: what is to be answered; empty where a time made the turn.
        database: keys, the board and all else, as `connect` gives it.
    """

    def __init__(self, host: Host, turn: Turn, messages: Sequence[Message] = ()) -> None:
        self.id = turn.id
        self.agent = turn.agent
        self.messages = messages
        self.database: Database = host.database
        self._host = host
        self._turn = turn
        self._desk = TurnDesk(host, turn)

    @property
    def effects(self) -> Sequence[Effect]:
        """What the tools that the model called will change when the turn ends."""
        return self._desk.effects

    def now(self) -> datetime:
        """The time, in UTC."""
        return self._host.clock.now()

    async def show(self, detail: str) -> None:
        """Show on the board what the agent does now; committed when this returns."""
        self._require_open()
        entry = {"status": "running", "detail": shorten_detail(detail)}
        await patiently(lambda: self._host.board.update(self.agent, entry))

    async def ask(self, text: str) -> str:
        """Ask the agent's model, which has the tools of a turn; every step is kept.

        Raises:
            ModelError: it gave no reply.
        """
        self._require_open()
        host, turn = self._host, self._turn
        model = host.models[turn.agent]
        if model.talks:
            prompt = await patiently(
                lambda: build_prompt(host.database, host.clock, self._desk, turn, text)
            )
        else:
            prompt = Prompt(text, turn.agent, turn.conversation or MAIN_CONVERSATION, turn.id)
        reach("model.before")
        reply = await model.reply(prompt)
        reach("model.after")
        return str(keepable(reply))

    def _require_open(self) -> None:
        """Refuse what goes on after its turn was ended."""
        if self.id not in self._host.executing:
            raise BadDataError(f"turn {self.id} is over")
