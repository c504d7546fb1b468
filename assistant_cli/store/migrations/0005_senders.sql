-- The sender of a message is the user of its session, whatever a writer says, then and later.
CREATE OR REPLACE FUNCTION assistant.stamp_sender() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    NEW.sender := CASE TG_OP WHEN 'INSERT' THEN session_user ELSE OLD.sender END;
    RETURN NEW;
END
$$;

CREATE OR REPLACE TRIGGER assistant_stamp_sender
    BEFORE INSERT OR UPDATE OF sender ON assistant.messages
    FOR EACH ROW EXECUTE FUNCTION assistant.stamp_sender();
