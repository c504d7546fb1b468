-- name: last
SELECT position, id, conversation, role, content, sender, source, state, created_at, attempts,
    error
FROM assistant.messages
WHERE %(conversation)s::text IS NULL OR conversation = %(conversation)s
ORDER BY position DESC LIMIT %(limit)s;

-- name: last_positions
SELECT position FROM assistant.messages
WHERE %(conversation)s::text IS NULL OR conversation = %(conversation)s
ORDER BY position DESC LIMIT %(limit)s;

-- name: unseen
SELECT position, id, conversation, role, content, sender, source, state, created_at, attempts,
    error
FROM assistant.messages
WHERE position > %(floor)s AND position <> ALL(%(seen)s::bigint[])
    AND (%(conversation)s::text IS NULL OR conversation = %(conversation)s)
ORDER BY position;
