-- name: close_orphans
-- Turns of agents that were released or taken over, and of those whose lease lapsed a day ago. Not
-- the turns that answer messages: the next worker closes them as it gives their messages back.
UPDATE assistant.turns
SET outcome = 'interrupted', ended_at = clock_timestamp(),
    error = 'the process that ran it ended'
WHERE id IN (
    SELECT id FROM assistant.turns AS open
    WHERE outcome = 'running' AND trigger <> 'message' AND NOT EXISTS (
        SELECT FROM assistant.leases
        WHERE leases.agent = open.agent AND leases.token = open.token
            AND expires_at > clock_timestamp() - interval '1 day')
    LIMIT 1000 FOR UPDATE SKIP LOCKED);

-- name: delete_expired_keys
DELETE FROM public.kv WHERE key IN (
    SELECT key FROM public.kv WHERE expires_at <= clock_timestamp()
    LIMIT 1000 FOR UPDATE SKIP LOCKED
) AND expires_at <= clock_timestamp();

-- name: delete_old_events
-- The last event of each agent stays, and the one with which its present status began, which has
-- `since`; where no event has it, the first.
WITH RECURSIVE agents AS (
    (SELECT agent FROM assistant.board_events ORDER BY agent LIMIT 1)
    UNION ALL
    SELECT (
        SELECT agent FROM assistant.board_events WHERE agent > agents.agent
        ORDER BY agent LIMIT 1)
    FROM agents WHERE agent IS NOT NULL
), kept AS (
    SELECT (
        SELECT id FROM assistant.board_events WHERE agent = ANY (ARRAY[agents.agent])
        ORDER BY agent DESC, id DESC LIMIT 1
    ) AS last, coalesce((
        SELECT id FROM assistant.board_events
        WHERE agent = ANY (ARRAY[agents.agent]) AND since IS NOT NULL
        ORDER BY agent DESC, id DESC LIMIT 1
    ), (
        SELECT id FROM assistant.board_events WHERE agent = ANY (ARRAY[agents.agent])
        ORDER BY agent, id LIMIT 1
    )) AS began
    FROM agents WHERE agent IS NOT NULL
)
DELETE FROM assistant.board_events WHERE id IN (
    SELECT id FROM assistant.board_events
    WHERE at < statement_timestamp() - %(keep)s
        AND id NOT IN (SELECT last FROM kept UNION ALL SELECT began FROM kept)
    ORDER BY at LIMIT 1000
);

-- name: delete_old_runs
DELETE FROM assistant.schedule_runs WHERE (schedule_id, due_at) IN (
    SELECT schedule_id, due_at FROM assistant.schedule_runs AS old
    WHERE at < statement_timestamp() - %(keep)s
        AND EXISTS (SELECT FROM assistant.schedule_runs AS newer
            WHERE newer.schedule_id = old.schedule_id AND newer.due_at > old.due_at)
    ORDER BY at LIMIT 1000
);

-- name: delete_old_schedules
-- Their runs go with them.
DELETE FROM assistant.schedules WHERE id IN (
    SELECT id FROM assistant.schedules
    WHERE state <> 'active'
        AND greatest(due_at, fired_at, created_at) < statement_timestamp() - %(keep)s
    LIMIT 1000 FOR UPDATE SKIP LOCKED
);

-- name: delete_old_steps
DELETE FROM assistant.turn_steps WHERE (turn_id, position) IN (
    SELECT turn_id, position FROM assistant.turn_steps AS old
    WHERE at < statement_timestamp() - %(keep)s
        AND EXISTS (SELECT FROM assistant.turns WHERE id = turn_id AND outcome <> 'running')
    LIMIT 1000
);

-- name: delete_turns_of_nothing
-- The last skipped and the last silent turn of an agent stay: they tell when it last ran.
DELETE FROM assistant.turns WHERE id IN (
    SELECT id FROM assistant.turns AS old
    WHERE outcome IN ('skipped', 'silent') AND started_at < statement_timestamp() - %(keep)s
        AND NOT EXISTS (SELECT FROM assistant.messages WHERE turn_id = old.id)
        AND EXISTS (SELECT FROM assistant.turns AS newer
            WHERE newer.agent = old.agent AND newer.id > old.id AND newer.outcome = old.outcome
                AND (newer.error IS NULL) = (old.error IS NULL))
    ORDER BY started_at LIMIT 1000
);
