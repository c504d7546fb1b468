"""Questions about the health of the database, for `doctor` and `db status`."""

from __future__ import annotations

from uuid import uuid4

from .database import Database, is_pooled
from .follow import listen
from .migrations import schema_version
from .queries import load_queries

_SQL = load_queries(__file__)
_TRIGGERS = {
    "assistant_stamp",
    "assistant_stamp_again",
    "assistant_notify_insert",
    "assistant_notify_update",
    "assistant_notify_delete",
    "assistant_notify_truncate",
    "assistant_record_board_insert",
    "assistant_record_board_update",
}
_PROBE_SECONDS = 2.0


async def read_server(database: Database) -> tuple[str, str, int]:
    """The server's version, how the database keeps text, and the schema's version."""
    async with database.connection() as connection:
        row = await (await connection.execute(_SQL["server_version"])).fetchone()
        assert row is not None
        encoding = connection.info.parameter_status("server_encoding") or ""
        return str(row[0]), encoding, await schema_version(connection)


async def find_missing_triggers(database: Database) -> list[str]:
    """The triggers of kv that are missing or disabled."""
    async with database.connection() as connection:
        rows = await (await connection.execute(_SQL["triggers"], {})).fetchall()
    return sorted(_TRIGGERS - {row[0] for row in rows})


async def may_write(database: Database) -> bool:
    """Whether this user may change what the agents change."""
    return await _is("may_write", database)


async def is_read_only(database: Database) -> bool:
    """Whether writing is refused to everybody, as on a standby."""
    return await _is("read_only", database)


async def _is(query: str, database: Database) -> bool:
    async with database.connection() as connection:
        row = await (await connection.execute(_SQL[query])).fetchone()
    return bool(row and row[0])


async def notifications_arrive(database: Database) -> bool:
    """Whether a notification sent on one connection reaches another; on a standby none does."""
    token = uuid4().hex
    async with database.connection() as listener, listener:
        if not await listen(listener, "assistant_probe", standby=True):
            return False
        async with database.connection() as sender:
            await sender.execute("SELECT pg_notify('assistant_probe', %s)", (token,))
        async for notify in listener.notifies(timeout=_PROBE_SECONDS):
            if notify.payload == token:
                return True
    return False


async def behind_pooler(database: Database) -> bool:
    """Whether a pooler such as PgBouncer stands between this program and the server."""
    async with database.connection() as connection:
        return is_pooled(connection)


async def notification_queue_usage(database: Database) -> float:
    """How full the server's queue of notifications is, 0 to 1."""
    async with database.connection() as connection:
        row = await (await connection.execute(_SQL["queue_usage"])).fetchone()
    return float(row[0]) if row else 0.0
