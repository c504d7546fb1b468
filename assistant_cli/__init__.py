"""A background assistant and its state, made for the shell.

The library in the same words as the command line:

    async with connect(dsn) as db:
        await db.kv.set("greeting", {"hello": "world"})
        board = await create_status_board(db)
        await board.update("heartbeat", {"status": "running", "detail": "writing a recipe"})
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .agents.definition import agent
    from .agents.turn_context import TurnContext
    from .errors import AssistantError, ConflictError
    from .store.board import StatusBoard, create_status_board
    from .store.database import Database
    from .store.opening import connect
    from .store.watch import Deleted, Entry

__version__ = "0.1.0"
__all__ = [
    "AssistantError",
    "ConflictError",
    "Database",
    "Deleted",
    "Entry",
    "StatusBoard",
    "TurnContext",
    "agent",
    "connect",
    "create_status_board",
]

_HOMES = {
    "AssistantError": "errors",
    "ConflictError": "errors",
    "Database": "store.database",
    "Deleted": "store.watch",
    "Entry": "store.watch",
    "StatusBoard": "store.board",
    "TurnContext": "agents.turn_context",
    "agent": "agents.definition",
    "connect": "store.opening",
    "create_status_board": "store.board",
}


def __getattr__(name: str) -> Any:
    # The command line imports this package for every command; psycopg comes when it is used.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
