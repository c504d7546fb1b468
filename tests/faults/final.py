"""What is stored once all is quiet."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row

MARKER = "k/the-end"
"""A watch that has delivered this key has delivered everything that was written before it."""

SCHEDULED = "another second"
"""The text of the schedule, which is said every second."""

WITNESS = """
CREATE SCHEMA faults;
CREATE TABLE faults.holders (token bigint, agent text, holder text);
CREATE TABLE faults.writes (
    id bigint GENERATED ALWAYS AS IDENTITY, agent text, token bigint, writer text);
CREATE UNLOGGED TABLE faults.waiting (place bigint PRIMARY KEY, writer text);
CREATE FUNCTION faults.note_holder() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO faults.holders
    VALUES (NEW.token, NEW.agent, current_setting('application_name'));
    RETURN NULL;
END
$$;
CREATE FUNCTION faults.note_write() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    written jsonb := to_jsonb(NEW);
    writer text := current_setting('application_name');
    taken jsonb := nullif(current_setting('faults.taken', true), '')::jsonb;
BEGIN
    -- An entry that waited is written by another than the one who wants it.
    IF TG_TABLE_NAME = 'board_events' THEN
        taken := taken -> NEW.agent;
        IF taken -> 'entry' @> jsonb_build_object('status', NEW.status, 'detail', NEW.detail) THEN
            writer := taken ->> 'writer';
        END IF;
        PERFORM set_config('faults.taken',
            (current_setting('faults.taken')::jsonb - NEW.agent)::text, true)
        WHERE taken IS NOT NULL;
    END IF;
    -- Workers answer under one name; the turn tells which of them.
    INSERT INTO faults.writes (agent, token, writer)
    SELECT leases.agent, leases.token, writer
    FROM assistant.leases WHERE leases.agent = coalesce(written ->> 'agent',
            (SELECT agent FROM assistant.turns WHERE id = (written ->> 'turn_id')::bigint))
        -- Anybody may close the turn of one whose lease has lapsed, or was taken by another.
        AND NOT (coalesce(written ->> 'outcome', '') = 'interrupted' AND NOT (
            assistant.lease_lasts(expires_at) AND token = (written ->> 'token')::bigint));
    RETURN NULL;
END
$$;
CREATE FUNCTION faults.note_waiting() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    IF TG_OP = 'INSERT' OR NEW.place <> OLD.place THEN
        INSERT INTO faults.waiting VALUES (NEW.place, current_setting('application_name'));
    ELSIF NEW.written AND NOT OLD.written THEN
        PERFORM set_config('faults.taken', (
            coalesce(nullif(current_setting('faults.taken', true), '')::jsonb, '{}')
            || jsonb_build_object(OLD.agent, jsonb_build_object('entry', OLD.entry, 'writer',
                (SELECT writer FROM faults.waiting WHERE place = OLD.place))))::text, true);
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER note_holder AFTER INSERT OR UPDATE OF token ON assistant.leases
    FOR EACH ROW EXECUTE FUNCTION faults.note_holder();
CREATE TRIGGER note_waiting AFTER INSERT OR UPDATE ON assistant.board_slots
    FOR EACH ROW EXECUTE FUNCTION faults.note_waiting();
CREATE TRIGGER note_write AFTER INSERT ON assistant.board_events
    FOR EACH ROW EXECUTE FUNCTION faults.note_write();
CREATE TRIGGER note_write AFTER INSERT OR UPDATE OF outcome ON assistant.turns
    FOR EACH ROW EXECUTE FUNCTION faults.note_write();
CREATE TRIGGER note_write AFTER INSERT ON assistant.messages
    FOR EACH ROW EXECUTE FUNCTION faults.note_write();
"""
"""Notes who took each lease, and for each write that was accepted who made it and who held then.

Processes are told apart by the name with which they connect.
"""


@dataclass(frozen=True)
class Final:
    """What is stored.

    Attributes:
        keys: key to value and revision.
        board: the stored status board.
        board_events: agent and detail of each transition, in order.
        messages: rows by position.
        turns: rows by id.
        leases: agent to token.
        holders: token, agent and process of each lease that was taken.
        writes: agent that is held, token of its holder and process of each write that was
            accepted, in order.
        firings: the time of each firing of the schedule, in seconds, and how many it stands for.
        next_firing: the next time of the schedule, in seconds.
        said: how often the text of the schedule was said.
        watchers: the clients that watched until the end.
        retried: ids of messages that were kept as failed, and then retried.
    """

    keys: dict[str, tuple[Any, int]] = field(default_factory=dict)
    board: dict[str, Any] = field(default_factory=dict)
    board_events: Sequence[tuple[str, str | None]] = ()
    messages: Sequence[dict[str, Any]] = ()
    turns: Sequence[dict[str, Any]] = ()
    leases: dict[str, int] = field(default_factory=dict)
    holders: Sequence[tuple[int, str, str]] = ()
    writes: Sequence[tuple[str, int, str]] = ()
    firings: Sequence[tuple[float, int]] = ()
    next_firing: float = 0.0
    said: int = 0
    watchers: Sequence[str] = ()
    retried: Sequence[str] = ()


_FIRED = (
    "SELECT extract(epoch FROM runs.due_at)::float8 AS at, missed + 1 AS times "
    "FROM assistant.schedule_runs AS runs JOIN assistant.schedules ON id = schedule_id "
    f"WHERE content = '{SCHEDULED}' ORDER BY 1",
    "SELECT extract(epoch FROM due_at)::float8 AS at FROM assistant.schedules "
    f"WHERE content = '{SCHEDULED}'",
    f"SELECT count(*) AS times FROM assistant.messages WHERE content = '{SCHEDULED}'",
)
"""The times a schedule fired, when it is due next, and how often its text was said."""


def read_store(dsn: str) -> Final:
    """What is stored now, read with plain SQL; where there is no witness, without its notes."""
    with psycopg.connect(dsn, autocommit=True, row_factory=dict_row) as connection:

        def query(text: str) -> list[dict[str, Any]]:
            return connection.execute(text.encode()).fetchall()

        keys = query("SELECT key, value, revision FROM kv WHERE key LIKE 'k/%'")
        boards = query("SELECT value FROM kv WHERE key = 'status_board'")
        events = query("SELECT agent, detail FROM assistant.board_events ORDER BY id")
        messages = query(
            "SELECT id::text, position, conversation, role, content, source, state, "
            "reply_id::text FROM assistant.messages WHERE source IN ('cli', 'conversation') "
            "ORDER BY position"
        )
        turns = query("SELECT id, agent, token, outcome FROM assistant.turns ORDER BY id")
        leases = query("SELECT agent, token FROM assistant.leases")
        witness = bool(query("SELECT FROM pg_namespace WHERE nspname = 'faults'"))
        holders = query("SELECT * FROM faults.holders") if witness else []
        writes = query("SELECT * FROM faults.writes ORDER BY id") if witness else []
        firings, following, said = map(query, _FIRED)
    return Final(
        keys={row["key"]: (row["value"], row["revision"]) for row in keys},
        board=boards[0]["value"] if boards else {},
        board_events=[(row["agent"], row["detail"]) for row in events],
        messages=messages,
        turns=turns,
        leases={row["agent"]: row["token"] for row in leases},
        holders=[(row["token"], row["agent"], row["holder"]) for row in holders],
        writes=[(row["agent"], row["token"], row["writer"]) for row in writes],
        firings=[(row["at"], row["times"]) for row in firings],
        next_firing=following[0]["at"] if following else 0.0,
        said=said[0]["times"],
    )


def keep_final(final: Final, folder: Path) -> None:
    """Keep it beside the histories."""
    (folder / "final.json").write_text(json.dumps(asdict(final), default=str), "utf-8")


def read_final(folder: Path) -> Final:
    """What was stored at the end of a campaign whose histories lie in the folder."""
    final = Final(**json.loads((folder / "final.json").read_text("utf-8")))
    keys = {key: (value, revision) for key, (value, revision) in final.keys.items()}
    return replace(final, keys=keys, board_events=[(a, d) for a, d in final.board_events])
