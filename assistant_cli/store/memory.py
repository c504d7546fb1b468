"""What the agents remember: texts under keys of their own."""

from __future__ import annotations

from .database import Database
from .watch import Entry

_PREFIXES = ("memory/", "diary/")


def memory_key(name: str) -> str:
    """The key of a text; `user` is short for `memory/user`."""
    return name if name.startswith(_PREFIXES) else f"memory/{name}"


async def read_memory(database: Database) -> list[Entry]:
    """All that is remembered, the diary last, in key order."""
    return [entry for prefix in _PREFIXES for entry in await database.kv.list_entries(prefix)]


async def search_memory(database: Database, query: str) -> list[Entry]:
    """What contains all the words of a query, in its key or its text, in any case."""
    words = query.lower().split()
    return [
        entry
        for entry in await read_memory(database)
        if all(word in f"{entry.key} {entry.plain}".lower() for word in words)
    ]
