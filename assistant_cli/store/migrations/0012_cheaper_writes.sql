-- A write of a key, and above all an update of the board, costs less.

-- As before, of an insert alone.
CREATE OR REPLACE FUNCTION assistant.stamp_kv() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
-- A plan made while the table was small must not be kept when it is large.
SET enable_seqscan = off SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- Those who write the key now go first.
    PERFORM 1 FROM public.kv WHERE key = NEW.key FOR NO KEY UPDATE;
    NEW.revision := nextval('assistant.revisions');
    NEW.updated_at := clock_timestamp();
    RETURN NEW;
END
$$;

CREATE OR REPLACE FUNCTION assistant.stamp_kv_again() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    NEW.revision := nextval('assistant.revisions');
    NEW.updated_at := clock_timestamp();
    -- A plain upsert of an expired key brings it back; it must not stay invisible.
    IF NEW.expires_at = OLD.expires_at AND NEW.expires_at <= NEW.updated_at THEN
        NEW.expires_at := NULL;
    END IF;
    IF NEW.key <> OLD.key THEN
        PERFORM pg_notify('assistant_kv', '');
    END IF;
    RETURN NEW;
END
$$;

CREATE OR REPLACE TRIGGER assistant_stamp BEFORE INSERT ON public.kv
    FOR EACH ROW EXECUTE FUNCTION assistant.stamp_kv();
CREATE OR REPLACE TRIGGER assistant_stamp_again BEFORE UPDATE ON public.kv
    FOR EACH ROW EXECUTE FUNCTION assistant.stamp_kv_again();
DROP TRIGGER IF EXISTS assistant_notify_rename ON public.kv;

-- Of the writer's own rights: whoever may write kv may notify.
CREATE OR REPLACE FUNCTION assistant.notify_kv() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    keys text[];
BEGIN
    SELECT array_agg(few.key) INTO keys FROM (SELECT key FROM changed LIMIT 101) AS few;
    IF cardinality(keys) > 100 THEN
        keys := '{""}';
    END IF;
    -- Equal notifications of a transaction are one.
    FOR place IN 1 .. coalesce(cardinality(keys), 0) LOOP
        PERFORM pg_notify('assistant_kv',
            CASE WHEN octet_length(keys[place]) > 512 THEN '' ELSE keys[place] END);
    END LOOP;
    RETURN NULL;
END
$$;

-- As before, but that the board as it was is unpacked once, not for each entry.
CREATE OR REPLACE FUNCTION assistant.record_board() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    before jsonb := '{}';
BEGIN
    IF jsonb_typeof(NEW.value) <> 'object' THEN
        RETURN NULL;
    END IF;
    IF TG_OP = 'UPDATE' AND jsonb_typeof(OLD.value) = 'object' THEN
        before := OLD.value || '{}';
    END IF;
    INSERT INTO assistant.board_events (agent, status, detail, since)
    SELECT entry.key, entry.value ->> 'status', entry.value ->> 'detail',
        CASE WHEN entry.value ->> 'status' = last.status THEN last.since
            ELSE clock_timestamp() END
    FROM jsonb_each(NEW.value) AS entry
    LEFT JOIN LATERAL (
        SELECT id, status, detail, since FROM assistant.board_events
        WHERE agent = entry.key ORDER BY id DESC LIMIT 1
    ) AS last ON true
    WHERE jsonb_typeof(entry.value) = 'object'
        AND entry.value IS DISTINCT FROM before -> entry.key
        AND (last.id IS NULL OR entry.value ->> 'status' IS DISTINCT FROM last.status
            OR entry.value ->> 'detail' IS DISTINCT FROM last.detail);
    RETURN NULL;
END
$$;

REVOKE EXECUTE ON FUNCTION assistant.stamp_kv_again() FROM PUBLIC;

-- Holds nothing. Whoever updates the board waits here for those before, and not at its row, where
-- each commit wakes all who wait; no advisory lock, as any user of the server can hold one.
CREATE TABLE IF NOT EXISTS assistant.board_queue ();

-- As before, but that updates are taken together, and wait in that queue.
CREATE OR REPLACE FUNCTION assistant.update_board(updates jsonb) RETURNS text[]
LANGUAGE plpgsql AS $$
DECLARE
    said jsonb;
    names text[];
    entries jsonb;
    tokens jsonb;
    repeated boolean := false;
    refused text[];
BEGIN
    -- Of several updates of an agent, the last is kept.
    SELECT array_agg(each.said ->> 'agent'),
        coalesce(jsonb_object_agg(each.said ->> 'agent', jsonb_build_object(
            'status', each.said -> 'status', 'detail', each.said -> 'detail')), '{}'),
        coalesce(jsonb_object_agg(each.said ->> 'agent', each.said -> 'token')
            FILTER (WHERE each.said ->> 'token' IS NOT NULL), '{}')
    INTO names, entries, tokens
    FROM jsonb_array_elements(updates) AS each (said);
    IF cardinality(names) > 1 THEN
        repeated := cardinality(names) > (SELECT count(*) FROM jsonb_object_keys(entries));
    END IF;
    -- In one order for all, so that a batch and a take-over never wait for each other.
    SELECT array_agg(held.agent) FILTER (WHERE CASE WHEN held.live
            THEN held.token IS DISTINCT FROM held.given ELSE held.given IS NOT NULL END),
        tokens - coalesce(array_agg(held.agent), '{}')
    INTO refused, tokens
    FROM (
        SELECT agent, token, expires_at > clock_timestamp() AS live,
            (tokens ->> agent)::bigint AS given
        FROM assistant.leases WHERE agent = ANY (names)
        ORDER BY agent FOR KEY SHARE
    ) AS held;
    -- What is left has a token but no lease.
    IF tokens <> '{}' THEN
        refused := refused || ARRAY(SELECT jsonb_object_keys(tokens));
    END IF;
    IF refused IS NOT NULL THEN
        RETURN refused;
    END IF;
    LOCK TABLE assistant.board_queue IN EXCLUSIVE MODE;
    IF repeated THEN
        -- The trigger will see the last entry of each agent only.
        FOR place IN 0 .. jsonb_array_length(updates) - 1 LOOP
            said := updates -> place;
            PERFORM assistant.record_transition(said ->> 'agent', said);
        END LOOP;
    END IF;
    UPDATE public.kv SET expires_at = NULL, value =
        CASE WHEN jsonb_typeof(value) = 'object' THEN value ELSE '{}' END || entries
    WHERE key = 'status_board';
    IF NOT FOUND THEN
        INSERT INTO public.kv AS board (key, value) VALUES ('status_board', entries)
        ON CONFLICT (key) DO UPDATE SET expires_at = NULL, value =
            CASE WHEN jsonb_typeof(board.value) = 'object' THEN board.value ELSE '{}' END
            || excluded.value;
    END IF;
    RETURN '{}';
END
$$;
