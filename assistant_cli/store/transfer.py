"""Export and import of keys as JSON lines, in constant memory."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from math import inf
from typing import Literal

from psycopg import AsyncClientCursor
from psycopg.abc import PQGen
from psycopg.errors import error_from_result
from psycopg.generators import fetch_many
from psycopg.pq import ExecStatus, TransactionStatus
from psycopg.pq.abc import PGconn
from psycopg.waiting import Wait

from ..errors import BadDataError, ConflictError
from ..json_values import check_entry_line
from .database import Connection, Database
from .queries import load_queries
from .watch import key_range

_SQL = load_queries(__file__)
_BLOCK_CHARACTERS = 1 << 16
_DELIMITER = b"\x02"

OnConflict = Literal["fail", "skip", "replace"]


async def export_lines(database: Database, prefix: str) -> AsyncGenerator[bytes]:
    """Yield blocks of export lines. See `KeyValues.export`."""
    async with (
        database.connection(patience=inf) as connection,
        AsyncClientCursor(connection) as cursor,
        cursor.copy(_SQL["export"], key_range(prefix)),
    ):
        try:
            while connection.pgconn.transaction_status == TransactionStatus.ACTIVE:
                yield await connection.wait(_read_block(connection.pgconn))
        except BaseException:
            # Or psycopg would wait for the rest, from a server that hangs without end.
            await connection.close()
            raise


def _read_block(connection: PGconn) -> PQGen[bytes]:
    """The lines that have come; at the end, none. psycopg would hand on each row by itself."""
    rows: list[memoryview] = []
    take = connection.get_copy_data
    while not rows:
        connection.consume_input()
        while (taken := take(1))[0] > 0:
            rows.append(taken[1])
        if taken[0] < 0:
            yield from _finish_copy(connection)
            break
        if not rows:
            yield Wait.R
    return _lines(rows)


def _finish_copy(connection: PGconn) -> PQGen[None]:
    for result in (yield from fetch_many(connection)):
        if result.status != ExecStatus.COMMAND_OK:
            raise error_from_result(result)


def _lines(rows: list[memoryview]) -> bytes:
    """Export lines of keys and values; the server would take longer to put them together."""
    if not rows:
        return b""
    text = b"".join(rows).removesuffix(b"\n")
    text = text.replace(b"\n", b'}\n{"key": ').replace(_DELIMITER, b', "value": ')
    return b'{"key": %b}\n' % text


async def import_lines(
    database: Database, lines: Iterable[str], on_conflict: OnConflict, dry_run: bool
) -> int:
    """Store export lines. See `KeyValues.import_lines`."""
    async with (
        database.connection(patience=inf) as connection,
        connection.transaction(force_rollback=dry_run),
    ):
        await connection.execute(_SQL["create_incoming"])
        count = await _copy_in(connection, lines)
        if on_conflict == "fail":
            row = await (await connection.execute(_SQL["find_conflict"])).fetchone()
            if row is not None:
                what = "comes twice" if row[1] else "exists already"
                raise ConflictError(f"the key {row[0]!r} {what}; nothing was imported")
        query = "store_replacing" if on_conflict == "replace" else "store_skipping"
        written = (await connection.execute(_SQL[query])).rowcount
        if on_conflict == "fail" and written < count:
            raise ConflictError("a key came into being meanwhile; nothing was imported")
        return written


async def _copy_in(connection: Connection, lines: Iterable[str]) -> int:
    async with connection.cursor() as cursor, cursor.copy(_SQL["copy_incoming"]) as copy:
        block: list[str] = []
        count = size = 0
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                check_entry_line(line.rstrip(" \t\r\n"))
            except BadDataError as error:
                raise BadDataError(f"line {number}: {error}; nothing was imported") from None
            # Between tokens, the only place JSON allows them, the ends of lines mean nothing.
            block.append(line.strip().replace("\r", " ").replace("\n", " "))
            count += 1
            size += len(line)
            if size > _BLOCK_CHARACTERS:
                await copy.write("\n".join(block) + "\n")
                block, size = [], 0
        if block:
            await copy.write("\n".join(block) + "\n")
    return count
