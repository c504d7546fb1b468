-- name: begin
INSERT INTO assistant.turns (agent, trigger, conversation, token, model)
VALUES (%(agent)s, %(trigger)s, %(conversation)s, %(token)s, %(model)s)
RETURNING id;

-- name: end
UPDATE assistant.turns
SET outcome = %(outcome)s, error = %(error)s, ended_at = clock_timestamp()
WHERE id = %(turn)s AND outcome = 'running';

-- name: outcome
SELECT outcome FROM assistant.turns WHERE id = %(turn)s;

-- name: interrupt_open
UPDATE assistant.turns
SET outcome = 'interrupted', ended_at = clock_timestamp(),
    error = 'the process that ran it ended'
WHERE agent = %(agent)s AND outcome = 'running'
RETURNING id;

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

-- name: request_cancellation
WITH asked AS (
    UPDATE assistant.turns SET cancelled_at = coalesce(cancelled_at, clock_timestamp())
    WHERE id = %(turn)s AND outcome = 'running'
    RETURNING agent, token
)
SELECT EXISTS (SELECT FROM assistant.leases
        WHERE leases.agent = asked.agent AND leases.token = asked.token
            AND expires_at > clock_timestamp()) AS hosted,
    pg_notify('assistant_turns', '')
FROM asked;

-- name: cancelled
SELECT id FROM assistant.turns WHERE outcome = 'running' AND cancelled_at IS NOT NULL;
