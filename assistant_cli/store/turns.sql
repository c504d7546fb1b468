-- name: begin
INSERT INTO assistant.turns (agent, trigger, conversation, token, model)
VALUES (%(agent)s, %(trigger)s, %(conversation)s, %(token)s, %(model)s)
RETURNING id;

-- name: end
UPDATE assistant.turns
SET outcome = %(outcome)s, error = %(error)s, ended_at = clock_timestamp()
WHERE id = %(turn)s AND outcome = 'running';

-- name: add_step
WITH held AS (
    SELECT FROM assistant.leases
    WHERE agent = %(agent)s AND token = %(token)s AND expires_at > clock_timestamp()
        AND EXISTS (SELECT FROM assistant.turns WHERE id = %(turn)s AND outcome = 'running')
    FOR KEY SHARE
), used AS (
    UPDATE assistant.turns
    SET requests = requests + %(requests)s, input_tokens = input_tokens + %(input_tokens)s,
        output_tokens = output_tokens + %(output_tokens)s,
        cost_usd = CASE WHEN %(cost_usd)s::numeric IS NULL THEN cost_usd
            ELSE coalesce(cost_usd, 0) + %(cost_usd)s::numeric END
    WHERE id = %(turn)s AND %(requests)s > 0 AND EXISTS (SELECT FROM held)
)
INSERT INTO assistant.turn_steps (turn_id, position, kind, content)
SELECT %(turn)s, 1 + coalesce(
    (SELECT max(position) FROM assistant.turn_steps WHERE turn_id = %(turn)s), 0),
    %(kind)s, %(content)s::jsonb
FROM held;

-- name: put_partial
INSERT INTO assistant.partial_replies (turn_id, text)
SELECT id, %(text)s FROM assistant.turns WHERE id = %(turn)s AND outcome = 'running'
ON CONFLICT (turn_id) DO UPDATE SET text = excluded.text
RETURNING pg_notify('assistant_messages', '');

-- name: outcome
SELECT outcome FROM assistant.turns WHERE id = %(turn)s;

-- name: interrupt_open
UPDATE assistant.turns
SET outcome = 'interrupted', ended_at = clock_timestamp(),
    error = 'the process that ran it ended'
WHERE agent = %(agent)s AND outcome = 'running' AND id <> ALL(%(running)s::bigint[])
RETURNING id, token;

-- name: list
SELECT id, agent, trigger, conversation, outcome, model, started_at, ended_at, cancelled_at,
    extract(epoch FROM coalesce(ended_at, clock_timestamp()) - started_at)::float8 AS seconds,
    requests, input_tokens, output_tokens, cost_usd, error
FROM assistant.turns
WHERE (%(agent)s::text IS NULL OR agent = %(agent)s)
    AND (NOT %(failed)s OR outcome IN ('failed', 'timed_out', 'interrupted'))
ORDER BY id DESC LIMIT %(limit)s;

-- name: one_moment
SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY;

-- name: find
SELECT id, agent, trigger, conversation, outcome, model, started_at, ended_at, cancelled_at,
    extract(epoch FROM coalesce(ended_at, clock_timestamp()) - started_at)::float8 AS seconds,
    requests, input_tokens, output_tokens, cost_usd, error
FROM assistant.turns WHERE id = %(turn)s;

-- name: messages
SELECT id, conversation, role, content, sender, source, state, created_at, attempts, error
FROM assistant.messages WHERE turn_id = %(turn)s
ORDER BY position;

-- name: steps
SELECT position, kind, at,
    CASE WHEN %(pretty)s THEN jsonb_pretty(content) ELSE content::text END AS content
FROM assistant.turn_steps WHERE turn_id = %(turn)s
ORDER BY position;

-- name: spend
SELECT coalesce(sum(requests), 0)::bigint AS requests,
    coalesce(sum(input_tokens), 0)::bigint AS input_tokens,
    coalesce(sum(output_tokens), 0)::bigint AS output_tokens, sum(cost_usd) AS cost_usd
FROM assistant.turns
WHERE requests > 0 AND started_at >= %(since)s
    AND (%(agent)s::text IS NULL OR agent = %(agent)s);

-- name: request_cancellation
UPDATE assistant.turns SET cancelled_at = coalesce(cancelled_at, clock_timestamp())
WHERE id = %(turn)s AND outcome = 'running'
RETURNING agent, token, pg_notify('assistant_turns', '');

-- name: cancelled
SELECT id FROM assistant.turns WHERE outcome = 'running' AND cancelled_at IS NOT NULL;
