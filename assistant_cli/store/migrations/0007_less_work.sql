-- What is done most often costs less.

-- As before, but that the next message is found without looking at all that wait.
CREATE INDEX IF NOT EXISTS messages_waiting
    ON assistant.messages (conversation, position) WHERE state = 'waiting';
CREATE OR REPLACE VIEW assistant.waiting_messages AS
SELECT id, conversation, position,
    CASE WHEN retry_at IS NULL AND content ~ '^\s*/[a-z]+(\s|$)' THEN '-infinity'
        ELSE coalesce((
            SELECT first.retry_at FROM assistant.messages AS first
            WHERE first.conversation = message.conversation AND first.state = 'waiting'
            ORDER BY first.position LIMIT 1), '-infinity')
    END AS ready_at
FROM assistant.messages AS message WHERE state = 'waiting';

CREATE OR REPLACE FUNCTION assistant.notify_kv() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- Equal notifications of a transaction are one.
    PERFORM pg_notify('assistant_kv',
        CASE WHEN few.count > 100 OR octet_length(few.key) > 512 THEN '' ELSE few.key END)
    FROM (SELECT key, count(*) OVER () FROM (SELECT key FROM changed LIMIT 101) AS first) AS few;
    RETURN NULL;
END
$$;

-- Whoever writes the board, with plain SQL too, has its transitions recorded.
CREATE OR REPLACE FUNCTION assistant.record_board() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    before jsonb := '{}';
BEGIN
    IF jsonb_typeof(NEW.value) <> 'object' THEN
        RETURN NULL;
    END IF;
    IF TG_OP = 'UPDATE' AND jsonb_typeof(OLD.value) = 'object' THEN
        before := OLD.value;
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

-- As before, but that all leases are looked up in one query.
CREATE OR REPLACE FUNCTION assistant.update_board(updates jsonb) RETURNS text[]
LANGUAGE plpgsql AS $$
DECLARE
    said jsonb;
    entries jsonb := '{}';
    tokens jsonb := '{}';
    repeated boolean := false;
    refused text[];
    name text;
BEGIN
    FOR place IN 0 .. jsonb_array_length(updates) - 1 LOOP
        said := updates -> place;
        name := said ->> 'agent';
        repeated := repeated OR entries ? name;
        entries := entries || jsonb_build_object(
            name, jsonb_build_object('status', said -> 'status', 'detail', said -> 'detail'));
        tokens := tokens || jsonb_build_object(name, said -> 'token');
    END LOOP;
    -- In one order for all, so that a batch and a take-over never wait for each other.
    WITH held AS (
        SELECT agent, leases.token, expires_at > clock_timestamp() AS live
        FROM assistant.leases
        WHERE agent IN (SELECT jsonb_object_keys(tokens))
        ORDER BY agent FOR KEY SHARE
    )
    SELECT array_agg(asked.key) INTO refused
    FROM jsonb_each_text(tokens) AS asked LEFT JOIN held ON held.agent = asked.key
    WHERE CASE WHEN asked.value IS NULL THEN held.live
        ELSE (held.live AND held.token = asked.value::bigint) IS NOT TRUE END;
    IF refused IS NOT NULL THEN
        RETURN refused;
    END IF;
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
