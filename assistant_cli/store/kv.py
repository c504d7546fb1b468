"""The key-value store: durable JSON values that plain SQL can read and write as well."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from psycopg.rows import class_row, dict_row

from ..errors import (
    AssistantError,
    BadDataError,
    ConflictError,
    DatabaseUnreachableError,
    NotFoundError,
)
from ..json_values import check_json, check_key, check_utf8, dump_json
from .batches import Batches, Write, fail_all, still_wanted
from .database import Connection, Database
from .follow import POLL_SECONDS
from .queries import load_queries
from .transfer import OnConflict, export_lines, import_lines
from .watch import Deleted, Entry, key_range, watch

_SQL = load_queries(__file__)
_MAX_COMMIT_CHARACTERS = 4_000_000

_QUOTED = r'"(?:[^"\\]|\\.)*"'
_STEPS = re.compile(rf'(?:{_QUOTED}|\[[^\]]*\]|[^"?()\[\s])*')
_STEP = re.compile(rf'{_QUOTED}|\[[^\]]*\]|\*+(?:\{{[^}}]*\}})?(?![^.\[])|[^".\[\]]+')


@dataclass
class _SetKey(Write[int]):
    key: str
    entry: str


class KeyValues:
    """Keys of 1 to 512 bytes, strict JSON values of at most 1 MB.

    Each method raises `BadDataError` for a bad key or value, and the errors of
    `Database.connection`.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._batches = Batches(self._set_batch)

    async def get(self, key: str) -> Any:
        """The value of a key as plain Python, None when it is missing.

        A stored JSON null is None as well; `get_entry` tells them apart.
        """
        entry = await self.get_entry(key)
        return None if entry is None else entry.value

    async def get_entry(self, key: str) -> Entry | None:
        """The key with its value as text and its revision; None when it is missing."""
        check_key(key)
        async with self._database.connection() as connection:
            cursor = connection.cursor(row_factory=class_row(Entry))
            return await (await cursor.execute(_SQL["get"], {"key": key})).fetchone()

    async def get_text(
        self, key: str, path: str | None = None, *, pretty: bool = False
    ) -> list[str]:
        """The JSON texts that a SQL/JSON path finds in a value; without a path, the value.

        Empty where the key is missing or the path finds nothing.

        Raises:
            BadDataError: the key, or the path, is none.
        """
        check_key(key)
        check_utf8(path or "", "the path")
        query = "get_path" if path is not None else "get_pretty" if pretty else "get"
        parameters = {"key": key, "path": None if path is None else full_path(path)}
        try:
            async with self._database.connection() as connection:
                cursor = connection.cursor(row_factory=dict_row)
                rows = await (await cursor.execute(_SQL[query], parameters)).fetchall()
        except BadDataError as error:
            if path is None:
                raise
            raise BadDataError(
                f"{path!r} is no path: {error}; a name with a space, a dot or a bracket takes "
                "double quotes"
            ) from None
        column = "pretty" if query == "get_path" and pretty else "text"
        return [row[column] for row in rows]

    async def set(
        self,
        key: str,
        value: Any,
        *,
        create: bool = False,
        merge: bool = False,
        if_revision: int | None = None,
        ttl: timedelta | None = None,
    ) -> int:
        """Store a Python value and return the key's new revision. See `set_text`."""
        return await self._set(key, dump_json(value), create, merge, if_revision, ttl)

    async def set_text(
        self,
        key: str,
        text: str,
        *,
        create: bool = False,
        merge: bool = False,
        if_revision: int | None = None,
        ttl: timedelta | None = None,
    ) -> int:
        """Store JSON text and return the key's new revision.

        Without a condition or a merge, texts that come while others are committed share the
        next commit, in order.

        Args:
            create: only if the key is missing.
            merge: apply the value as a JSON Merge Patch (RFC 7396) to what is stored.
            if_revision: only if the key has this revision; 0 means: is missing.
            ttl: the key expires this long after now; default: never, with `merge`: as before.

        Raises:
            ConflictError: the key exists, or has another revision.
            BadDataError: what a merge results in is too large.
        """
        check_json(text)
        return await self._set(key, text, create, merge, if_revision, ttl)

    async def _set(
        self,
        key: str,
        text: str,
        create: bool,
        merge: bool,
        if_revision: int | None,
        ttl: timedelta | None,
    ) -> int:
        check_key(key)
        if not (create or merge or if_revision is not None):
            return await self._set_shared(key, text, ttl)
        create = create or if_revision == 0
        query = "create" if create else "merge" if if_revision is None else "replace_at_revision"
        parameters = {"key": key, "value": text, "ttl": ttl, "revision": if_revision}
        revision = await self._set_alone(query, parameters, merge)
        if revision is not None:
            return revision
        if create:
            raise ConflictError(f"the key {key!r} exists already")
        raise ConflictError(f"the key {key!r} does not have revision {if_revision} (any more)")

    async def _set_shared(self, key: str, text: str, ttl: timedelta | None) -> int:
        """Store one text in a commit that it shares; its revision."""
        entry = _entry_to_set(key, text, ttl)
        write = _SetKey(asyncio.get_running_loop().create_future(), key, entry)
        await self._batches.write(write)
        return write.written.result()

    async def _set_alone(self, query: str, parameters: dict[str, Any], merge: bool) -> int | None:
        """Store one text in a commit of its own; its revision, None where a condition fails."""
        lend = self._database.transaction if merge else self._database.connection
        async with lend() as connection:
            cursor = await connection.execute(_SQL[query], {**parameters, "merge": merge})
            row = await cursor.fetchone()
            if row is not None and merge:
                check_json(row[1])
        return None if row is None else int(row[0])

    async def _set_batch(self, batch: list[_SetKey]) -> None:
        """Store each text; a key that comes again is stored again, after all the others."""
        while batch := still_wanted(batch):
            await self._set_together(_next_commit(batch))

    async def _set_together(self, writes: list[_SetKey]) -> None:
        """Store texts of different keys with one commit, or each alone if one is refused."""
        try:
            async with self._database.connection() as connection:
                if not (writes := still_wanted(writes)):
                    return
                parameters = {"writes": f"[{', '.join(write.entry for write in writes)}]"}
                cursor = await connection.execute(_SQL["set"], parameters)
                revisions = dict(await cursor.fetchall())
        except DatabaseUnreachableError:
            raise
        except AssistantError as error:
            if len(writes) == 1:
                fail_all(writes, error)
                return
            for write in writes:
                await self._set_together([write])
        else:
            for write in writes:
                if write.key in revisions:
                    write.succeed(revisions[write.key])
                else:
                    write.fail(ConflictError(f"a trigger of the table left out {write.key!r}"))

    async def delete(self, *keys: str) -> None:
        """Delete keys, all of them or none.

        Raises:
            NotFoundError: one of them is missing.
        """
        for key in keys:
            check_key(key)
        async with self._database.transaction() as connection:
            cursor = await connection.execute(_SQL["delete"], {"keys": list(keys)})
            found = {row[0] for row in await cursor.fetchall()}
            missing = sorted(set(keys) - found)
            if missing:
                rest = "; nothing was removed" if len(keys) > 1 else ""
                raise NotFoundError(f"no such key: {', '.join(map(repr, missing))}{rest}")

    async def increment(self, key: str, by: str | int = 1) -> str:
        """Add a number to a number, exactly, and return the sum as JSON text.

        A missing key counts as 0.

        Raises:
            BadDataError: the value is not a number, or `by` is not one.
        """
        check_key(key)
        if not re.fullmatch(r"-?\d{1,100}(\.\d{1,100})?", str(by), re.ASCII):
            raise BadDataError(f"{by!r} is not a decimal number")
        async with self._database.connection() as connection:
            cursor = await connection.execute(_SQL["increment"], {"key": key, "by": str(by)})
            row = await cursor.fetchone()
        if row is None:
            raise BadDataError(f"the value of {key!r} is not a number")
        return str(row[0])

    async def list_keys(self, prefix: str = "", limit: int | None = None) -> list[str]:
        """The keys that start with a prefix, in byte order."""
        check_utf8(prefix, "the prefix")
        async with self._database.connection() as connection:
            parameters = {**key_range(prefix), "limit": limit}
            rows = await (await connection.execute(_SQL["list_keys"], parameters)).fetchall()
        return [row[0] for row in rows]

    async def list_entries(self, prefix: str = "", limit: int | None = None) -> list[Entry]:
        """The keys that start with a prefix, in byte order, with their values."""
        check_utf8(prefix, "the prefix")
        async with self._database.connection() as connection:
            cursor = connection.cursor(row_factory=class_row(Entry))
            parameters = {**key_range(prefix), "limit": limit}
            return await (await cursor.execute(_SQL["list"], parameters)).fetchall()

    def watch(
        self,
        key: str | None = None,
        *,
        prefix: str = "",
        initial: bool = True,
        poll: float = POLL_SECONDS,
    ) -> AsyncGenerator[Entry | Deleted]:
        """Yield the current entries, then each change, for one key or all of a prefix.

        Changes in quick succession may come as one; the last state always comes. Outlives
        lost connections and server restarts.

        Args:
            initial: False leaves out what is there at the start.
            poll: seconds after which to look unasked.
        """
        if key is not None:
            check_key(key)
        check_utf8(prefix, "the prefix")
        return watch(self._database, key, prefix, initial, poll)

    def export(self, prefix: str = "") -> AsyncGenerator[bytes]:
        """Yield blocks of `{"key": …, "value": …}` lines, in key order, in constant memory."""
        check_utf8(prefix, "the prefix")
        return export_lines(self._database, prefix)

    async def import_lines(
        self, lines: Iterable[str], *, on_conflict: OnConflict = "replace", dry_run: bool = False
    ) -> int:
        """Store `{"key": …, "value": …}` lines in one transaction; returns the keys written.

        Args:
            on_conflict: `replace` what exists (the last line of a key wins), `skip` it (the
                first line wins), or `fail`.
            dry_run: check everything, then write nothing.

        Raises:
            BadDataError: a line is not such an object; its number is named.
            ConflictError: with `fail`, a key exists already or comes twice.
        """
        return await import_lines(self._database, lines, on_conflict, dry_run)


def full_path(path: str) -> str:
    """Complete a path: `heartbeat.status` is short for `$."heartbeat"."status"`."""
    if path.startswith(("$", "strict ", "lax ")):
        return path
    steps = _STEPS.match(path)
    assert steps is not None
    end = steps.end()
    if path[end : end + 1] == "(":
        end = path.rfind(".", 0, end) + 1  # a method, such as .size()
    dot = "" if path.startswith(("[", "?", " ")) else "."
    return f"${dot}{_STEP.sub(_quote_name, path[:end])}{path[end:]}"


def _quote_name(step: re.Match[str]) -> str:
    text = step[0]
    return text if text[0] in '"[*' else json.dumps(text, ensure_ascii=False)


def _next_commit(batch: list[_SetKey]) -> list[_SetKey]:
    """The first writes of a batch that fit into one statement, each key once."""
    first: dict[str, _SetKey] = {}
    size = 0
    for write in batch:
        if write.key not in first:
            size += len(write.entry)
            if first and size > _MAX_COMMIT_CHARACTERS:
                break
            first[write.key] = write
    return list(first.values())


def _entry_to_set(key: str, text: str, ttl: timedelta | None) -> str:
    seconds = "null" if ttl is None else repr(ttl.total_seconds())
    return f'{{"key": {dump_json(key)}, "value": {text}, "ttl": {seconds}}}'


async def store_text(
    connection: Connection, key: str, text: str, ttl: timedelta | None = None
) -> None:
    """Store a text as a JSON string, as part of the caller's transaction."""
    parameters = {"writes": f"[{_entry_to_set(key, dump_json(text), ttl)}]"}
    await connection.execute(_SQL["set"], parameters)
