-- Several conversations are answered at a time, by several hosts too; each by one turn at a time.

UPDATE assistant.turns AS turn
SET outcome = 'interrupted', ended_at = clock_timestamp(),
    error = 'the process that ran it ended'
WHERE trigger = 'message' AND outcome = 'running' AND EXISTS (
    SELECT FROM assistant.turns AS newer
    WHERE newer.trigger = 'message' AND newer.outcome = 'running'
        AND newer.conversation = turn.conversation AND newer.id > turn.id);
CREATE UNIQUE INDEX IF NOT EXISTS turns_of_conversation ON assistant.turns (conversation)
    WHERE trigger = 'message' AND outcome = 'running';

CREATE INDEX IF NOT EXISTS messages_tried_again ON assistant.messages (conversation)
    WHERE state = 'waiting' AND retry_at IS NOT NULL;

-- As before, but that a message waits for the turn that runs in its conversation. What is rare is
-- looked for first, in sets that are small, since a claim looks at all messages that wait.
CREATE OR REPLACE VIEW assistant.waiting_messages AS
SELECT id, conversation, position,
    CASE WHEN EXISTS (
            SELECT FROM assistant.turns
            WHERE turns.conversation = message.conversation
                AND trigger = 'message' AND outcome = 'running') THEN 'infinity'
        WHEN NOT EXISTS (
            SELECT FROM assistant.messages AS again
            WHERE again.conversation = message.conversation
                AND again.state = 'waiting' AND again.retry_at IS NOT NULL) THEN '-infinity'
        WHEN retry_at IS NULL AND content ~ '^\s*/[a-z]+(\s|$)' THEN '-infinity'
        ELSE coalesce((
            SELECT first.retry_at FROM assistant.messages AS first
            WHERE first.conversation = message.conversation AND first.state = 'waiting'
            ORDER BY first.position LIMIT 1), '-infinity')
    END AS ready_at
FROM assistant.messages AS message WHERE state = 'waiting';

-- Whoever ends a turn, what had come of its reply goes with it.
CREATE OR REPLACE FUNCTION assistant.drop_partial_reply() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    DELETE FROM assistant.partial_replies WHERE turn_id = NEW.id;
    RETURN NULL;
END
$$;

CREATE OR REPLACE TRIGGER assistant_drop_partial_reply AFTER UPDATE OF outcome ON assistant.turns
    FOR EACH ROW WHEN (NEW.outcome <> 'running')
    EXECUTE FUNCTION assistant.drop_partial_reply();
