-- name: begin
SELECT * FROM assistant.begin_turns(%(agent)s, %(token)s, %(model)s, %(limit)s);

-- name: keep
SELECT ended, entry FROM assistant.keep_replies(%(agent)s, %(token)s, %(replies)s::jsonb);

-- name: show
WITH held AS MATERIALIZED (
    SELECT FROM assistant.leases
    WHERE agent = %(agent)s AND token = %(token)s AND expires_at > clock_timestamp()
    FOR KEY SHARE
)
SELECT assistant.show_turns(%(agent)s, %(token)s, %(at_rest)s::jsonb) FROM held;

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
-- Locks the lapsed leases, so that none of them is renewed before this is committed; one that is
-- just being renewed is left alone.
WITH lapsed AS MATERIALIZED (
    SELECT agent FROM assistant.leases
    WHERE NOT assistant.lease_lasts(expires_at)
        AND agent IN (SELECT agent FROM assistant.orphaned_turns)
    ORDER BY agent FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE assistant.turns
SET outcome = 'interrupted', ended_at = clock_timestamp(), error = 'the process that ran it ended'
-- Looked at again, since the view does not see what is committed while this waits for a row.
WHERE outcome = 'running' AND token <> %(token)s
    AND id IN (SELECT id FROM assistant.orphaned_turns)
    AND NOT EXISTS (
        SELECT FROM assistant.leases WHERE leases.agent = turns.agent
            AND leases.token = turns.token AND leases.agent NOT IN (SELECT agent FROM lapsed));

-- name: mark_cancelled
UPDATE assistant.messages SET error = %(error)s WHERE turn_id = %(turn)s AND state = 'working';

-- name: fail_cancelled
-- Only messages that are marked: where one was taken back, the others of its turn wait again.
UPDATE assistant.messages SET state = 'failed', retry_at = NULL
WHERE state = 'working' AND error = %(error)s AND turn_id IN (
    SELECT id FROM assistant.turns
    WHERE cancelled_at IS NOT NULL AND outcome NOT IN ('running', 'done'));

-- name: give_up_failed
UPDATE assistant.messages SET error = %(error)s
WHERE turn_id = %(turn)s AND state = 'failed' AND error IS DISTINCT FROM %(error)s;

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
