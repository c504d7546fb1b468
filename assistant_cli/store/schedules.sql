-- name: add
INSERT INTO assistant.schedules
    (conversation, content, action, kind, spec, zone, due_at, catch_up)
VALUES (%(conversation)s, %(content)s, %(action)s, %(kind)s, %(spec)s, %(zone)s, %(due_at)s,
    %(catch_up)s)
RETURNING id, pg_notify('assistant_messages', '');

-- name: list
SELECT id, conversation, content, action, kind, spec, zone, catch_up, state, due_at, created_at,
    fired_at, attempts, retry_at, error
FROM assistant.schedules
WHERE (%(over)s OR state = 'active')
    AND (%(conversation)s::text IS NULL OR conversation = %(conversation)s)
ORDER BY state <> 'active', due_at, id LIMIT %(limit)s::bigint;

-- name: get
SELECT id, conversation, content, action, kind, spec, zone, catch_up, state, due_at, created_at,
    fired_at, attempts, retry_at, error
FROM assistant.schedules WHERE id = %(id)s;

-- name: lock
SELECT id, conversation, content, action, kind, spec, zone, catch_up, state, due_at, created_at,
    fired_at, attempts, retry_at, error
FROM assistant.schedules WHERE id = %(id)s FOR UPDATE;

-- name: runs
SELECT due_at, outcome, missed, requested, attempts, error, message_id, at
FROM assistant.schedule_runs WHERE schedule_id = %(id)s ORDER BY due_at DESC LIMIT 10;

-- name: edit
UPDATE assistant.schedules SET
    content = %(content)s, kind = %(kind)s, spec = %(spec)s, zone = %(zone)s,
    due_at = %(due_at)s, catch_up = %(catch_up)s, attempts = 0, retry_at = NULL, error = NULL
WHERE id = %(id)s
RETURNING pg_notify('assistant_messages', '');

-- name: cancel
UPDATE assistant.schedules SET state = 'cancelled', retry_at = NULL
WHERE id = %(id)s AND conversation = %(conversation)s AND state = 'active'
RETURNING pg_notify('assistant_messages', '');
