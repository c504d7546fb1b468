"""The board as a table on a terminal, drawn with Rich."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import aclosing
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from . import output
from .status import state_of

if TYPE_CHECKING:
    from ..messages import Usage
    from ..store.database import Database
    from ..store.status import AgentRow, Snapshot, Transition

_STYLES = {"idle": "green", "running": "cyan", "failed": "bold red"}
_STATE_STYLES = {"live": "green", "stale": "bold red", "-": "dim"}
_SILENCE_SECONDS = 3.0
# What other programs put on the board may be long, and wrapping it takes long.
_MOST_SHOWN = 2_000


def console() -> Console:
    """A console for stdout, colored as the user wishes; its width is the terminal's."""
    # Rich takes a COLUMNS of 0 at its word, and shows nothing.
    unset = {name for name in ("COLUMNS", "LINES") if os.environ.get(name) == "0"}
    return Console(
        _environ={name: value for name, value in os.environ.items() if name not in unset},
        file=sys.stdout,
        no_color=not output.use_color(),
        force_terminal=True if output.use_color() else None,
        highlight=False,
        markup=False,
        emoji=False,
    )


def print_table(snapshot: Snapshot, rows: list[AgentRow]) -> None:
    """Print the board once."""
    console().print(draw(snapshot, rows, snapshot.now))


def draw(snapshot: Snapshot, rows: list[AgentRow], now: datetime) -> Group:
    """The board as of `now`, which may be later than the snapshot."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in ("AGENT", "STATUS", "DETAIL", "SINCE", "PROCESS"):
        # Where there is no room, a value goes on below: cut off, it would look like another one.
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*_cells(row, now))
    return Group(table, _footer(snapshot, now))


def _cells(row: AgentRow, now: datetime) -> list[Text]:
    state = state_of(row)
    holder = f" {row.host} {row.pid}" if row.host and state != "-" else ""
    status = row.status or "?"
    return [
        _safe(row.agent, "bold"),
        _safe(status, "dim" if row.stale else _STYLES.get(status, "")),
        _safe(row.detail or ""),
        _safe(output.ago(row.since, now)),
        Text.assemble(_safe(state, _STATE_STYLES[state]), _safe(holder, "dim")),
    ]


def _footer(snapshot: Snapshot, now: datetime) -> Text:
    inbox = snapshot.inbox
    parts = [f"{inbox.waiting + inbox.working} waiting"]
    if inbox.oldest_seconds is not None:
        oldest = snapshot.now - timedelta(seconds=inbox.oldest_seconds)
        parts[0] += f" (oldest {output.ago(oldest, now)})"
    if inbox.failed:
        parts.append(f"{inbox.failed} failed")
    last = _time_of(snapshot.last_tick_at)
    parts.append(f"last heartbeat {output.ago(last, now)} ago" if last else "no heartbeat yet")
    upcoming = _time_of(snapshot.next_tick_at)
    if upcoming:
        parts.append(f"next in {output.ago(now, max(upcoming, now))}")
    elif snapshot.next_tick_at == "off":
        parts.append("no next one: off")
    if snapshot.paused:
        parts.append("paused")
    if snapshot.spent.requests:
        parts.append(_spent(snapshot.spent))
    return _safe("messages: " + " · ".join(parts), "dim")


def _spent(spent: Usage) -> str:
    cost = f" (${spent.cost_usd:.2f})" if spent.cost_usd is not None else ""
    return f"today {spent.tokens:,} tokens{cost}"


def _time_of(text: str | None) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text) if text else None
    except ValueError:
        return None
    return moment if moment and moment.tzinfo else None


async def watch_table(database: Database, names: list[str]) -> None:
    """Redraw the board in place, once a second and at every change."""
    from ..store.status import follow_snapshots

    screen = _Screen(names)
    # On a screen of its own, which survives being resized, as that of watch(1) and top(1).
    with Live(console=console(), auto_refresh=False, screen=True) as live:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTSTP, _suspend, live)
        redrawing = asyncio.create_task(screen.redraw_regularly(live))
        try:
            async with aclosing(follow_snapshots(database)) as snapshots:
                async for snapshot in snapshots:
                    screen.show(live, snapshot)
        finally:
            redrawing.cancel()


def _suspend(live: Live) -> None:
    """Stop at Ctrl-Z with the terminal as it was; go on where `fg` lets us."""
    live.stop()
    os.kill(os.getpid(), signal.SIGSTOP)
    live.start()


class _Screen:
    """The last snapshot and how long ago it came: an old one is marked as such."""

    def __init__(self, names: list[str]) -> None:
        self._names = names
        self._snapshot: Snapshot | None = None
        self._received = 0.0

    def show(self, live: Live, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._received = asyncio.get_running_loop().time()
        self._draw(live)

    async def redraw_regularly(self, live: Live) -> None:
        while True:
            await asyncio.sleep(1)
            self._draw(live)

    def _draw(self, live: Live) -> None:
        if self._snapshot is None:
            return
        silent = asyncio.get_running_loop().time() - self._received
        rows = self._snapshot.select(self._names)
        board = draw(self._snapshot, rows, self._snapshot.now + timedelta(seconds=silent))
        if silent > _SILENCE_SECONDS:
            warning = f"the database has not answered for {silent:.0f}s; this is what it said last"
            # Above, since a low terminal cuts off what is below.
            board = Group(_safe(warning, "bold red"), board)
        live.update(board, refresh=True)


def print_history(events: list[Transition]) -> None:
    """Print transitions, oldest first, in local time."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in ("TIME", "AGENT", "STATUS", "DETAIL"):
        table.add_column(heading, overflow="fold")
    for event in events:
        status = event.status or "?"
        table.add_row(
            _safe(output.local_time(event.at), "dim"),
            _safe(event.agent, "bold"),
            _safe(status, _STYLES.get(status, "")),
            _safe(event.detail or ""),
        )
    console().print(table)


def _safe(text: str, style: str = "") -> Text:
    """What comes from the database, as text that steers neither the terminal nor Rich."""
    shown = text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"
    return Text(output.show_line(shown), style=style)
