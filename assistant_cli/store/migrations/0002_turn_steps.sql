-- What a turn cost, and what was sent and came back in it, step by step.

ALTER TABLE assistant.turns ADD COLUMN IF NOT EXISTS requests integer NOT NULL DEFAULT 0;
ALTER TABLE assistant.turns ADD COLUMN IF NOT EXISTS input_tokens bigint NOT NULL DEFAULT 0;
ALTER TABLE assistant.turns ADD COLUMN IF NOT EXISTS output_tokens bigint NOT NULL DEFAULT 0;
ALTER TABLE assistant.turns ADD COLUMN IF NOT EXISTS cost_usd numeric;
-- Somebody asked for it to be ended; its agent does so.
ALTER TABLE assistant.turns ADD COLUMN IF NOT EXISTS cancelled_at timestamptz;

CREATE TABLE IF NOT EXISTS assistant.turn_steps (
    turn_id bigint NOT NULL REFERENCES assistant.turns (id) ON DELETE CASCADE,
    position integer NOT NULL,
    kind text NOT NULL CHECK (kind IN ('request', 'response', 'tool_call', 'tool_result')),
    content jsonb NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (turn_id, position)
);

-- What has come of a reply so far, for those who watch it come. Unlogged: a crash of the server
-- loses it, and the turn with it.
CREATE UNLOGGED TABLE IF NOT EXISTS assistant.partial_replies (
    turn_id bigint PRIMARY KEY REFERENCES assistant.turns (id) ON DELETE CASCADE,
    text text NOT NULL
);
