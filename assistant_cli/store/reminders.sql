-- name: add
INSERT INTO assistant.schedules (conversation, content, due_at)
VALUES (%(conversation)s, %(content)s, %(due_at)s);

-- name: pending
SELECT id, conversation, content, due_at FROM assistant.schedules
WHERE fired_at IS NULL AND conversation = %(conversation)s
ORDER BY due_at, id LIMIT 100;

-- name: take_due
UPDATE assistant.schedules SET fired_at = clock_timestamp()
WHERE id IN (
    SELECT id FROM assistant.schedules
    WHERE fired_at IS NULL AND due_at <= %(now)s
    ORDER BY due_at, id LIMIT 100 FOR UPDATE SKIP LOCKED)
RETURNING id, conversation, content, due_at;

-- name: link
UPDATE assistant.schedules SET message_id = %(message)s WHERE id = %(id)s;

-- name: next_due
SELECT min(due_at) FROM assistant.schedules WHERE fired_at IS NULL;
