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
