-- name: put
CALL assistant.put_message(
    %(id)s, %(conversation)s, %(content)s, %(source)s, %(external_id)s);

-- name: find_duplicate
-- Written again as it is: it may not be on the standbys yet, and this waits for them.
UPDATE assistant.messages SET source = source
WHERE id = %(id)s OR (source = %(source)s AND external_id = %(external_id)s)
RETURNING id, conversation, content;

-- name: progress
SELECT message.state, message.attempts, message.error, reply.content AS reply,
    partial_replies.text AS partial
FROM assistant.messages AS message
LEFT JOIN assistant.messages AS reply ON reply.id = message.reply_id
LEFT JOIN assistant.partial_replies ON partial_replies.turn_id = message.turn_id
WHERE message.id = %(id)s;

-- name: say
INSERT INTO assistant.messages (id, conversation, role, content, source, state, turn_id)
VALUES (%(id)s, %(conversation)s, 'assistant', %(content)s, %(source)s, 'said', %(turn)s);

-- name: withdraw
-- A message that is being answered is only marked: once its turn is cancelled, it fails, and the
-- others of the turn wait again. The turn is locked before its message, as wherever a turn ends, or
-- the two could deadlock.
WITH not_begun AS (
    UPDATE assistant.messages SET state = 'failed', error = %(error)s, retry_at = NULL
    WHERE id = %(id)s AND state = 'waiting'
), begun AS (
    UPDATE assistant.turns SET cancelled_at = coalesce(cancelled_at, clock_timestamp())
    WHERE outcome = 'running' AND id = (
        SELECT turn_id FROM assistant.messages WHERE id = %(id)s AND state = 'working')
    RETURNING id
), marked AS (
    UPDATE assistant.messages SET error = %(error)s
    WHERE id = %(id)s AND state = 'working' AND turn_id IN (SELECT id FROM begun)
)
SELECT pg_notify('assistant_turns', ''), pg_notify('assistant_messages', '');

-- name: announce
SELECT pg_notify('assistant_messages', '');

-- name: unanswered
WITH taken AS (
    UPDATE assistant.messages SET reported_at = clock_timestamp()
    WHERE id IN (
        SELECT id FROM assistant.messages
        WHERE reported_at IS NULL AND (state = 'failed' AND error IS DISTINCT FROM %(cancelled)s
            OR state = 'waiting' AND created_at < clock_timestamp() - %(patience)s)
        ORDER BY position LIMIT 100 FOR UPDATE SKIP LOCKED)
    RETURNING *
)
SELECT id, conversation, role, content, sender, source, state, created_at, attempts, error
FROM taken ORDER BY position;

-- name: history
SELECT id, conversation, role, content, sender, source, state, created_at, attempts, error
FROM assistant.messages WHERE conversation = %(conversation)s
ORDER BY position DESC LIMIT %(limit)s;
