-- What is old, or belongs to a turn, is found without reading every row.
CREATE INDEX IF NOT EXISTS messages_of_turn ON assistant.messages (turn_id);
CREATE INDEX IF NOT EXISTS turns_of_nothing
    ON assistant.turns (started_at) WHERE outcome IN ('skipped', 'silent');
-- Rows are appended in the order of these times, so that a BRIN index, which costs next to
-- nothing, tells where to look.
CREATE INDEX IF NOT EXISTS messages_by_time
    ON assistant.messages USING brin (created_at) WITH (autosummarize = on);
CREATE INDEX IF NOT EXISTS board_events_by_time
    ON assistant.board_events USING brin (at) WITH (autosummarize = on);
CREATE INDEX IF NOT EXISTS turn_steps_by_time
    ON assistant.turn_steps USING brin (at) WITH (autosummarize = on);
