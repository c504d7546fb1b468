-- name: add
INSERT INTO assistant.schedules (conversation, content, due_at)
VALUES (%(conversation)s, %(content)s, %(due_at)s);

-- name: pending
SELECT id, conversation, content, due_at FROM assistant.schedules
WHERE state = 'active' AND action = 'remind' AND conversation = %(conversation)s
ORDER BY due_at, id LIMIT 100;

-- name: next_due
SELECT min(coalesce(retry_at, due_at)) FROM assistant.schedules WHERE state = 'active';
