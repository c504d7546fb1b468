-- An insert has its revision before it meets whoever writes the key at the same time. Where that
-- one deleted it in the end, the key came back with a smaller revision than it had been seen with.

CREATE OR REPLACE FUNCTION assistant.stamp_kv() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
-- A plan made while the table was small must not be kept when it is large.
SET enable_seqscan = off SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        -- Those who write the key now go first.
        PERFORM 1 FROM public.kv WHERE key = NEW.key FOR NO KEY UPDATE;
    END IF;
    NEW.revision := nextval('assistant.revisions');
    NEW.updated_at := clock_timestamp();
    -- A plain upsert of an expired key brings it back; it must not stay invisible.
    IF TG_OP = 'UPDATE' AND NEW.expires_at = OLD.expires_at
        AND NEW.expires_at <= NEW.updated_at THEN
        NEW.expires_at := NULL;
    END IF;
    RETURN NEW;
END
$$;
