"""Watching keys: what is there now, then each change."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg.rows import class_row

from ..json_values import load_json
from .database import Connection, Database
from .follow import Hints, follow
from .queries import load_queries

_SQL = load_queries(__file__)
CHANNEL = "assistant_kv"
_AFTER_ALL_KEYS = "\U0010ffff" * 129
"""More bytes than a key may have, all of them the largest: it comes after every key."""


@dataclass(frozen=True)
class Entry:
    """A key as stored: `text` is its value as JSON text, digit for digit."""

    key: str
    text: str
    revision: int
    updated_at: datetime
    expires_at: datetime | None

    @property
    def value(self) -> Any:
        return load_json(self.text)

    @property
    def plain(self) -> str:
        """The value for people: a text without its quotes, anything else as JSON."""
        # Not by its value: other programs store what Python cannot hold.
        return str(self.value) if self.text.startswith('"') else self.text


@dataclass(frozen=True)
class Deleted:
    """A key that is gone; `revision` is the last one it was seen with."""

    key: str
    revision: int


Change = Entry | Deleted


async def watch(
    database: Database, key: str | None, prefix: str, initial: bool, poll: float
) -> AsyncGenerator[Change]:
    """Yield the current entries and then each change. See `KeyValues.watch`."""
    watcher = _Watcher(key, prefix, initial)
    following = follow(database, CHANNEL, watcher.read, poll=poll, standby=True)
    async with aclosing(following) as states:
        async for changes in states:
            for change in changes:
                yield change


class _Watcher:
    """Remembers the revisions it has shown, so that a hint in vain shows nothing."""

    def __init__(self, key: str | None, prefix: str, initial: bool) -> None:
        self._key = key
        self._prefix = prefix
        self._silent = not initial
        self._shown: dict[str, int] = {}

    async def read(self, connection: Connection, hints: Hints) -> list[Change] | None:
        if self._silent:
            self._shown = await self._revisions(connection)
            self._silent = False
            return None
        keys = await self._candidates(connection, hints)
        if not keys:
            return None
        cursor = connection.cursor(row_factory=class_row(Entry))
        entries = await (await cursor.execute(_SQL["entries"], {"keys": list(keys)})).fetchall()
        changed = [entry for entry in entries if self._shown.get(entry.key) != entry.revision]
        gone = sorted((keys & self._shown.keys()) - {entry.key for entry in entries})
        deleted = [Deleted(key, self._shown.pop(key)) for key in gone]
        self._shown.update((entry.key, entry.revision) for entry in changed)
        return [*deleted, *changed] or None

    async def _candidates(self, connection: Connection, hints: Hints) -> set[str]:
        if hints is not None:
            return {key for key in hints if self._concerns(key)}
        if self._key is not None:
            return {self._key}
        revisions = await self._revisions(connection)
        changed = {key for key, revision in revisions.items() if self._shown.get(key) != revision}
        return changed | (self._shown.keys() - revisions.keys())

    async def _revisions(self, connection: Connection) -> dict[str, int]:
        if self._key is not None:
            cursor = await connection.execute(_SQL["revision"], {"key": self._key})
        else:
            cursor = await connection.execute(_SQL["revisions"], key_range(self._prefix))
        return {row[0]: row[1] for row in await cursor.fetchall()}

    def _concerns(self, key: str) -> bool:
        return key == self._key if self._key is not None else key.startswith(self._prefix)


def key_range(prefix: str) -> dict[str, str]:
    """The range of keys, `start` to before `end`, that have a prefix.

    There is always an end: a query for which it were optional would, once prepared, read all keys
    from the start on. UTF-8 byte order is code point order, so the end is the prefix with its last
    character replaced by the next one, leaving out the surrogates, which no text holds.
    """
    stem = prefix.rstrip("\U0010ffff")
    if not stem:
        return {"start": prefix, "end": _AFTER_ALL_KEYS}
    following = ord(stem[-1]) + 1
    if following == 0xD800:
        following = 0xE000
    return {"start": prefix, "end": stem[:-1] + chr(following)}
