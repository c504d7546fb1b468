"""What is deleted in time, and what stays."""

from __future__ import annotations

from assistant_cli.store.database import Database
from assistant_cli.store.retention import prune

from .hosting import rows

OLD, NEW = "interval '31 days'", "interval '29 days'"


async def _add_turn(database: Database, outcome: str, age: str, error: str = "NULL") -> int:
    (turn,) = await rows(
        database,
        "INSERT INTO assistant.turns (agent, trigger, token, model, outcome, error, started_at) "
        f"VALUES ('heartbeat', 'timer', 1, 'offline', '{outcome}', {error}, now() - {age}) "
        "RETURNING id",
    )
    assert isinstance(turn, int)
    return turn


async def _turns(database: Database) -> list[int]:
    return await rows(database, "SELECT id FROM assistant.turns ORDER BY id")


async def test_turns_that_came_to_nothing_go_but_for_the_last_of_each_kind(
    database: Database,
) -> None:
    await _add_turn(database, "silent", OLD)
    considered = await _add_turn(database, "silent", OLD)
    # Its model was not asked, so that the one before still tells what was considered.
    not_asked = await _add_turn(database, "silent", OLD, "'nothing has happened'")
    await _add_turn(database, "skipped", OLD, "'paused'")
    last_skipped = await _add_turn(database, "skipped", NEW, "'paused'")
    await prune(database)
    assert await _turns(database) == [considered, not_asked, last_skipped]


async def test_turns_that_did_something_or_that_a_message_belongs_to_stay(
    database: Database,
) -> None:
    kept = [await _add_turn(database, outcome, OLD) for outcome in ("done", "failed", "silent")]
    await rows(
        database,
        "INSERT INTO assistant.messages (id, conversation, role, content, source, state, turn_id) "
        f"VALUES (gen_random_uuid(), 'main', 'assistant', 'x', 'x', 'said', {kept[-1]})",
    )
    kept.append(await _add_turn(database, "silent", NEW))
    await prune(database)
    assert await _turns(database) == kept


async def test_old_steps_go_and_their_turn_and_the_steps_of_a_running_turn_stay(
    database: Database,
) -> None:
    turns = [
        await _add_turn(database, outcome, age)
        for outcome, age in (("done", OLD), ("running", OLD), ("done", NEW))
    ]
    await rows(
        database,
        "INSERT INTO assistant.leases VALUES "
        "('heartbeat', 1, 'h', 1, 'p', now(), now() + interval '1 minute')",
    )
    await rows(
        database,
        "INSERT INTO assistant.turn_steps (turn_id, position, kind, content, at) "
        "SELECT id, position, 'request', '{}', started_at "
        "FROM assistant.turns, generate_series(1, 1500) AS position",
    )
    await prune(database)
    left = await rows(database, "SELECT DISTINCT turn_id FROM assistant.turn_steps ORDER BY 1")
    assert left == turns[1:]
    assert await _turns(database) == turns


async def test_old_transitions_go_but_for_the_last_of_each_agent(database: Database) -> None:
    await rows(
        database,
        "INSERT INTO assistant.board_events (agent, status, since, at) "
        "SELECT agent, 'idle', now(), now() - make_interval(days => 31, secs => -n) "
        "FROM generate_series(1, 1200) AS n, unnest(ARRAY['a', 'b']) AS agent",
    )
    await prune(database)
    left = await rows(database, "SELECT agent FROM assistant.board_events ORDER BY 1")
    assert left == ["a", "b"]


async def test_the_transition_that_tells_since_when_a_status_lasts_stays(
    database: Database,
) -> None:
    await rows(
        database,
        "INSERT INTO assistant.board_events (agent, status, detail, since, at) "
        "SELECT agent, 'running', n, CASE WHEN agent = 'a' AND n IN (1, 2) THEN at END, at "
        "FROM generate_series(1, 9) AS n, make_interval(days => 40, secs => -n) AS age, "
        "LATERAL (SELECT now() - age) AS time (at), unnest(ARRAY['a', 'adopted']) AS agent",
    )
    await prune(database)
    query = "SELECT detail FROM assistant.board_events WHERE agent = %s ORDER BY id"
    assert await rows(database, query, "a") == ["2", "9"]
    assert await rows(database, query, "adopted") == ["1", "9"]


async def test_schedules_that_are_over_go_in_time_with_their_runs(database: Database) -> None:
    schedules = [("done", OLD), ("cancelled", OLD), ("active", OLD), ("done", NEW)]
    for state, age in schedules:
        await rows(
            database,
            "WITH schedule AS (INSERT INTO assistant.schedules "
            "(conversation, content, due_at, created_at, fired_at, state) "
            f"VALUES ('main', '{state}', now() - {age}, now() - {age}, now() - {age}, '{state}') "
            "RETURNING id) INSERT INTO assistant.schedule_runs (schedule_id, due_at, outcome, at) "
            f"SELECT id, now() - {age}, 'fired', now() - {age} FROM schedule",
        )
    await prune(database)
    left = "SELECT id FROM assistant.schedules ORDER BY id"
    assert await rows(database, left) == [3, 4]
    runs = "SELECT schedule_id FROM assistant.schedule_runs ORDER BY schedule_id"
    assert await rows(database, runs) == [3, 4]


async def test_expired_keys_go(database: Database) -> None:
    await rows(
        database,
        "INSERT INTO kv (key, value, expires_at) "
        "SELECT 'gone/' || n, '1', now() - interval '1s' FROM generate_series(1, 1200) AS n",
    )
    await database.kv.set("stays", 1)
    await prune(database)
    assert await rows(database, "SELECT key FROM kv") == ["stays"]


async def test_a_turn_that_nobody_can_end_is_closed(database: Database) -> None:
    orphan = await _add_turn(database, "running", NEW)
    await rows(database, "INSERT INTO assistant.partial_replies VALUES (%s, 'Well')", orphan)
    await prune(database)
    assert await rows(database, "SELECT text FROM assistant.partial_replies") == []
    assert await rows(database, "SELECT id, outcome, error FROM assistant.turns") == [
        (orphan, "interrupted", "the process that ran it ended")
    ]


async def test_a_turn_whose_process_may_come_back_stays_open_for_a_day(database: Database) -> None:
    await _add_turn(database, "running", NEW)
    outcomes = "SELECT outcome FROM assistant.turns"
    await rows(
        database,
        "INSERT INTO assistant.leases VALUES "
        "('heartbeat', 1, 'h', 1, 'p', now(), now() - interval '23 hours')",
    )
    await prune(database)
    assert await rows(database, outcomes) == ["running"]
    await rows(database, "UPDATE assistant.leases SET expires_at = now() - interval '25 hours'")
    await prune(database)
    assert await rows(database, outcomes) == ["interrupted"]
