-- name: claim
-- The turns are begun in one order for all, so that two hosts never wait for each other.
WITH held AS (
    SELECT FROM assistant.leases
    WHERE agent = %(agent)s AND token = %(token)s AND expires_at > clock_timestamp()
    FOR KEY SHARE
), longest AS (
    SELECT conversation, position FROM assistant.waiting_messages, held
    WHERE ready_at <= clock_timestamp() ORDER BY position LIMIT 100
), next AS (
    SELECT conversation FROM longest
    GROUP BY conversation ORDER BY min(position) LIMIT %(limit)s
), ready AS (
    SELECT id, row_number() OVER (PARTITION BY conversation ORDER BY position) AS number
    FROM assistant.waiting_messages
    WHERE conversation IN (SELECT conversation FROM next) AND ready_at <= clock_timestamp()
), batch AS (
    SELECT id, conversation FROM assistant.messages
    WHERE state = 'waiting' AND id IN (SELECT id FROM ready WHERE number <= 100)
    ORDER BY position FOR UPDATE
), turn AS (
    INSERT INTO assistant.turns (agent, trigger, conversation, token, model)
    SELECT %(agent)s, 'message', conversation, %(token)s, %(model)s
    FROM batch GROUP BY conversation ORDER BY conversation
    ON CONFLICT (conversation) WHERE trigger = 'message' AND outcome = 'running' DO NOTHING
    RETURNING id, conversation
)
UPDATE assistant.messages AS message
SET state = 'working', attempts = attempts + 1, turn_id = turn.id, retry_at = NULL
FROM batch JOIN turn USING (conversation) WHERE message.id = batch.id
RETURNING turn_id, message.position, message.id, message.conversation, role, content, sender,
    source, state, created_at, attempts, error;

-- name: seconds_to_next
SELECT CASE min(ready_at) WHEN 'infinity' THEN 'infinity'
    ELSE extract(epoch FROM greatest(min(ready_at), clock_timestamp()) - clock_timestamp())
    END::float8
FROM assistant.waiting_messages HAVING count(*) > 0;

-- name: answer_at_once
WITH held AS (
    SELECT FROM assistant.leases
    WHERE agent = %(agent)s AND token = %(token)s AND expires_at > clock_timestamp()
    FOR KEY SHARE
), given AS (
    SELECT * FROM ROWS FROM (
        jsonb_to_recordset(%(replies)s::jsonb)
            AS (turn bigint, conversation text, id uuid, text text, answers uuid[])
    ) WITH ORDINALITY AS reply(turn, conversation, id, text, answers, number)
), ended AS (
    UPDATE assistant.turns SET outcome = 'done', ended_at = clock_timestamp() FROM held
    WHERE id IN (SELECT turn FROM given) AND outcome = 'running'
    RETURNING id
), reply AS (
    SELECT given.* FROM given JOIN ended ON ended.id = given.turn
), said AS (
    INSERT INTO assistant.messages (id, conversation, role, content, source, state, turn_id)
    SELECT id, conversation, 'assistant', text, 'conversation', 'said', turn
    FROM reply ORDER BY number
), answered AS (
    UPDATE assistant.messages AS message
    SET state = 'answered', reply_id = reply.id, answered_at = clock_timestamp(), error = NULL
    FROM reply
    WHERE message.id = ANY(reply.answers) AND turn_id = reply.turn AND state = 'working'
)
SELECT id, pg_notify('assistant_messages', '') FROM ended;

-- name: answer
UPDATE assistant.messages
SET state = 'answered', reply_id = %(reply)s, answered_at = clock_timestamp(), error = NULL
WHERE id = ANY(%(ids)s) AND turn_id = %(turn)s AND state = 'working';

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
WHERE state = 'working' AND turn_id = ANY(%(turns)s);

-- name: close_orphans
UPDATE assistant.turns
SET outcome = 'interrupted', ended_at = clock_timestamp(), error = 'the process that ran it ended'
WHERE trigger = 'message' AND outcome = 'running' AND token <> %(token)s AND NOT EXISTS (
    SELECT FROM assistant.leases
    WHERE leases.agent = turns.agent AND leases.token = turns.token
        AND assistant.lease_lasts(expires_at))
RETURNING id;

-- name: fail_cancelled
UPDATE assistant.messages
SET state = 'failed', error = %(error)s, retry_at = NULL
WHERE state = 'working' AND turn_id IN (
    SELECT id FROM assistant.turns
    WHERE cancelled_at IS NOT NULL AND outcome NOT IN ('running', 'done'));

-- name: return_interrupted
UPDATE assistant.messages
SET state = CASE WHEN attempts >= %(limit)s THEN 'failed' ELSE 'waiting' END,
    error = 'interrupted: the process that was answering ended', retry_at = NULL
WHERE state = 'working' AND turn_id IN (
    SELECT id FROM assistant.turns WHERE outcome NOT IN ('running', 'done'));

-- name: retry_failed
UPDATE assistant.messages
SET state = 'waiting', attempts = 0, error = NULL, retry_at = NULL, reported_at = NULL
WHERE turn_id = %(turn)s AND state = 'failed';
