-- Schedules beside reminders: texts that come at a time, every so often, or as a cron line says.

-- What happens: a reminder or a text is said, or the text is put into the inbox.
ALTER TABLE assistant.schedules ADD COLUMN IF NOT EXISTS action text NOT NULL DEFAULT 'remind'
    CHECK (action IN ('remind', 'say', 'ask'));
ALTER TABLE assistant.schedules ADD COLUMN IF NOT EXISTS kind text NOT NULL DEFAULT 'at'
    CHECK (kind IN ('at', 'every', 'cron'));
-- The duration or the cron line, as it was given; none for a single time.
ALTER TABLE assistant.schedules ADD COLUMN IF NOT EXISTS spec text;
ALTER TABLE assistant.schedules ADD COLUMN IF NOT EXISTS zone text;
ALTER TABLE assistant.schedules ADD COLUMN IF NOT EXISTS catch_up text NOT NULL DEFAULT 'once'
    CHECK (catch_up IN ('once', 'skip'));

-- due_at is the next time while it is active, and the last one after that.
ALTER TABLE assistant.schedules ADD COLUMN IF NOT EXISTS state text
    CHECK (state IN ('active', 'done', 'cancelled'));
UPDATE assistant.schedules SET state = CASE WHEN fired_at IS NULL THEN 'active' ELSE 'done' END
WHERE state IS NULL;
ALTER TABLE assistant.schedules ALTER COLUMN state SET DEFAULT 'active';
ALTER TABLE assistant.schedules ALTER COLUMN state SET NOT NULL;

-- How often the firing at due_at has failed, and when it is tried again.
ALTER TABLE assistant.schedules ADD COLUMN IF NOT EXISTS attempts integer NOT NULL DEFAULT 0;
ALTER TABLE assistant.schedules ADD COLUMN IF NOT EXISTS retry_at timestamptz;
ALTER TABLE assistant.schedules ADD COLUMN IF NOT EXISTS error text;

DROP INDEX IF EXISTS assistant.schedules_due;
CREATE INDEX IF NOT EXISTS schedules_next
    ON assistant.schedules (coalesce(retry_at, due_at)) WHERE state = 'active';

-- schedule_runs: what became of a due time, in one row, whoever fires: so it is fired once.
-- A run at somebody's request has the time of the request.
CREATE TABLE IF NOT EXISTS assistant.schedule_runs (
    schedule_id bigint NOT NULL REFERENCES assistant.schedules (id) ON DELETE CASCADE,
    due_at timestamptz NOT NULL,
    outcome text NOT NULL CHECK (outcome IN ('fired', 'skipped', 'failed')),
    missed integer NOT NULL DEFAULT 0,
    requested boolean NOT NULL DEFAULT false,
    attempts integer NOT NULL DEFAULT 1,
    error text,
    message_id uuid REFERENCES assistant.messages (id),
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (schedule_id, due_at)
);
