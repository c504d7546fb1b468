-- What was used since a time is found without reading every turn.
CREATE INDEX IF NOT EXISTS turns_that_cost
    ON assistant.turns (started_at) WHERE requests > 0;
