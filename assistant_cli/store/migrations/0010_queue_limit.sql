-- One client cannot fill the database, or the days of its agents, with messages. A thousand is
-- ten turns of a hundred messages each: more than anybody waits for. What schedules ask may be ten
-- times as many, so that nobody keeps them out by filling a conversation.

-- SECURITY DEFINER, so that a program that may only insert messages need not be granted more.
CREATE OR REPLACE FUNCTION assistant.limit_waiting() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
-- A plan made while the table was small must not be kept when it is large.
SET enable_seqscan = off SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    most integer := CASE WHEN NEW.source = 'schedule' THEN 10000 ELSE 1000 END;
BEGIN
    IF octet_length(NEW.content) > 256000 THEN
        RAISE EXCEPTION 'a message has at most 256,000 bytes; this has %',
            octet_length(NEW.content) USING ERRCODE = 'program_limit_exceeded';
    END IF;
    PERFORM 1 FROM assistant.messages
    WHERE conversation = NEW.conversation AND state = 'waiting' OFFSET most - 1 LIMIT 1;
    -- One that is known already under its id is no further one.
    IF FOUND AND NOT EXISTS (
        SELECT FROM assistant.messages
        WHERE id = NEW.id OR (source = NEW.source AND external_id = NEW.external_id)) THEN
        RAISE EXCEPTION '% messages wait in this conversation, as many as may', most USING
            ERRCODE = 'AS001', HINT = 'Try again when some of them are answered.';
    END IF;
    RETURN NEW;
END
$$;

CREATE OR REPLACE TRIGGER assistant_limit_waiting BEFORE INSERT ON assistant.messages
    FOR EACH ROW WHEN (NEW.state = 'waiting') EXECUTE FUNCTION assistant.limit_waiting();
