-- name: put
WITH inserted AS (
    INSERT INTO assistant.messages
        (id, conversation, role, content, source, external_id, state)
    VALUES (%(id)s, %(conversation)s, 'user', %(content)s, %(source)s, %(external_id)s, 'waiting')
    ON CONFLICT DO NOTHING
    RETURNING id
)
SELECT id, pg_notify('assistant_messages', '') FROM inserted;

-- name: confirm
UPDATE assistant.messages SET source = source
WHERE id = %(id)s OR (source = %(source)s AND external_id = %(external_id)s);

-- name: find_duplicate
SELECT id, conversation, content FROM assistant.messages
WHERE id = %(id)s OR (source = %(source)s AND external_id = %(external_id)s);

-- name: progress
SELECT message.state, message.attempts, message.error, reply.content AS reply,
    partial_replies.text AS partial
FROM assistant.messages AS message
LEFT JOIN assistant.messages AS reply ON reply.id = message.reply_id
LEFT JOIN assistant.partial_replies ON partial_replies.turn_id = message.turn_id
WHERE message.id = %(id)s;

-- name: claim
WITH held AS (
    SELECT FROM assistant.leases
    WHERE agent = 'conversation' AND token = %(token)s AND expires_at > clock_timestamp()
    FOR KEY SHARE
), next AS (
    SELECT conversation FROM assistant.waiting_messages, held
    WHERE ready_at <= clock_timestamp() ORDER BY position LIMIT 1
), batch AS (
    SELECT id FROM assistant.messages
    WHERE state = 'waiting' AND id IN (
        SELECT id FROM assistant.waiting_messages
        WHERE conversation = (SELECT conversation FROM next) AND ready_at <= clock_timestamp())
    ORDER BY position LIMIT 100
    FOR UPDATE SKIP LOCKED
), turn AS (
    INSERT INTO assistant.turns (agent, trigger, conversation, token, model)
    SELECT 'conversation', 'message', conversation, %(token)s, %(model)s
    FROM assistant.messages WHERE id IN (SELECT id FROM batch) LIMIT 1
    RETURNING id
)
UPDATE assistant.messages AS message
SET state = 'working', attempts = attempts + 1, turn_id = turn.id, retry_at = NULL
FROM batch, turn WHERE message.id = batch.id
RETURNING turn_id, message.position, message.id, conversation, role, content, sender, source,
    state, created_at, attempts, error;

-- name: seconds_to_next
SELECT extract(
    epoch FROM greatest(min(ready_at), clock_timestamp()) - clock_timestamp())::float8
FROM assistant.waiting_messages HAVING count(*) > 0;

-- name: say
INSERT INTO assistant.messages (id, conversation, role, content, source, state, turn_id)
VALUES (%(id)s, %(conversation)s, 'assistant', %(content)s, %(source)s, 'said', %(turn)s);

-- name: answer
UPDATE assistant.messages
SET state = 'answered', reply_id = %(reply)s, answered_at = clock_timestamp(), error = NULL
WHERE id = ANY(%(ids)s) AND turn_id = %(turn)s AND state = 'working';

-- name: answer_at_once
WITH held AS (
    SELECT FROM assistant.leases
    WHERE agent = 'conversation' AND token = %(token)s AND expires_at > clock_timestamp()
    FOR KEY SHARE
), ended AS (
    UPDATE assistant.turns SET outcome = 'done', ended_at = clock_timestamp() FROM held
    WHERE id = %(turn)s AND outcome = 'running'
    RETURNING id
), whole AS (
    DELETE FROM assistant.partial_replies USING ended WHERE turn_id = ended.id
), reply AS (
    SELECT reply.* FROM ended,
        jsonb_to_recordset(%(replies)s::jsonb) AS reply(id uuid, text text, answers uuid[])
), said AS (
    INSERT INTO assistant.messages (id, conversation, role, content, source, state, turn_id)
    SELECT id, %(conversation)s, 'assistant', text, 'conversation', 'said', %(turn)s FROM reply
), answered AS (
    UPDATE assistant.messages AS message
    SET state = 'answered', reply_id = reply.id, answered_at = clock_timestamp(), error = NULL
    FROM reply
    WHERE message.id = ANY(reply.answers) AND turn_id = %(turn)s AND state = 'working'
)
SELECT pg_notify('assistant_messages', '') FROM ended;

-- name: return_failed
UPDATE assistant.messages
SET state = CASE WHEN attempts >= %(limit)s THEN 'failed' ELSE 'waiting' END,
    error = %(error)s,
    retry_at = clock_timestamp() + %(delay)s * power(3, attempts - 1)
WHERE turn_id = %(turn)s AND state = 'working';

-- name: return_unattempted
UPDATE assistant.messages
SET state = 'waiting', attempts = attempts - 1, error = %(error)s,
    retry_at = clock_timestamp() + %(delay)s
WHERE turn_id = %(turn)s AND state = 'working';

-- name: return_unexecuted
UPDATE assistant.messages SET state = 'waiting', attempts = attempts - 1
WHERE state = 'working' AND turn_id IN (
    SELECT id FROM assistant.turns WHERE agent = 'conversation' AND token = %(token)s);

-- name: fail_cancelled
UPDATE assistant.messages
SET state = 'failed', error = %(error)s, retry_at = NULL
WHERE state = 'working' AND turn_id IN (
    SELECT id FROM assistant.turns
    WHERE cancelled_at IS NOT NULL AND outcome NOT IN ('running', 'done'));

-- name: withdraw
WITH not_begun AS (
    UPDATE assistant.messages SET state = 'failed', error = %(error)s, retry_at = NULL
    WHERE id = %(id)s AND state = 'waiting'
), begun AS (
    UPDATE assistant.turns SET cancelled_at = coalesce(cancelled_at, clock_timestamp())
    WHERE outcome = 'running' AND id = (
        SELECT turn_id FROM assistant.messages WHERE id = %(id)s AND state = 'working')
)
SELECT pg_notify('assistant_turns', ''), pg_notify('assistant_messages', '');

-- name: retry_failed
UPDATE assistant.messages
SET state = 'waiting', attempts = 0, error = NULL, retry_at = NULL, reported_at = NULL
WHERE turn_id = %(turn)s AND state = 'failed';

-- name: return_interrupted
UPDATE assistant.messages
SET state = CASE WHEN attempts >= %(limit)s THEN 'failed' ELSE 'waiting' END,
    error = 'interrupted: the process that was answering ended', retry_at = NULL
WHERE state = 'working' AND turn_id IN (
    SELECT id FROM assistant.turns WHERE agent = 'conversation' AND outcome <> 'done');

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
