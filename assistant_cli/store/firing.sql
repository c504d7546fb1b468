-- name: reminds_next
SELECT action = 'remind' FROM assistant.schedules WHERE state = 'active'
ORDER BY coalesce(retry_at, due_at), id LIMIT 1;

-- name: next_due
SELECT min(coalesce(retry_at, due_at)) FROM assistant.schedules WHERE state = 'active';

-- name: now
SELECT clock_timestamp();

-- name: take_due
-- Without SKIP LOCKED: a schedule that is just being edited would be found due again at once.
SELECT id, conversation, content, action, kind, spec, zone, catch_up, state, due_at, created_at,
    fired_at, attempts, retry_at, error
FROM assistant.schedules
WHERE state = 'active' AND coalesce(retry_at, due_at) <= %(now)s
ORDER BY coalesce(retry_at, due_at), id LIMIT 100 FOR UPDATE;

-- name: fire
-- Where the due time has a run that did not fail, there is no further message.
WITH run AS (
    INSERT INTO assistant.schedule_runs
        (schedule_id, due_at, outcome, missed, requested, message_id)
    VALUES (%(id)s, %(due_at)s, 'fired', %(missed)s, %(requested)s, %(message)s)
    ON CONFLICT (schedule_id, due_at) DO UPDATE SET
        outcome = 'fired', missed = excluded.missed, attempts = schedule_runs.attempts + 1,
        error = NULL, message_id = excluded.message_id, at = excluded.at
    WHERE schedule_runs.outcome = 'failed'
    RETURNING message_id
)
INSERT INTO assistant.messages
    (id, conversation, role, content, source, external_id, state, turn_id)
SELECT message_id, %(conversation)s, %(role)s, %(content)s, %(source)s, %(external_id)s,
    %(message_state)s, %(turn)s
FROM run;

-- name: skip
INSERT INTO assistant.schedule_runs (schedule_id, due_at, outcome, missed)
VALUES (%(id)s, %(due_at)s, 'skipped', %(missed)s)
ON CONFLICT (schedule_id, due_at) DO UPDATE SET
    outcome = 'skipped', missed = excluded.missed, at = excluded.at
WHERE schedule_runs.outcome = 'failed';

-- name: move
UPDATE assistant.schedules SET
    due_at = coalesce(%(following)s, due_at),
    state = CASE WHEN %(following)s::timestamptz IS NULL THEN 'done' ELSE state END,
    fired_at = CASE WHEN %(message)s::uuid IS NULL THEN fired_at ELSE clock_timestamp() END,
    message_id = coalesce(%(message)s, message_id),
    attempts = 0, retry_at = NULL, error = NULL
WHERE id = %(id)s;

-- name: put_off
WITH run AS (
    INSERT INTO assistant.schedule_runs (schedule_id, due_at, outcome, error)
    VALUES (%(id)s, %(due_at)s, 'failed', %(error)s)
    ON CONFLICT (schedule_id, due_at) DO UPDATE SET
        attempts = schedule_runs.attempts + 1, error = excluded.error, at = excluded.at
    WHERE schedule_runs.outcome = 'failed'
)
UPDATE assistant.schedules SET
    attempts = attempts + 1, retry_at = %(retry_at)s, error = %(error)s
WHERE id = %(id)s;
